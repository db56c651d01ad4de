"""A smaller vocabulary: which tokens stay, and the tokenizer, the model and the text that go with them."""
