"""The arithmetic of K-prune: tensors in, tensors out; it knows no model and no data set.

The equations are those of Park, Choi and Kang, "Accurate Retraining-free Pruning for Pretrained Encoder-based Language
Models" (ICLR 2024, arXiv 2308.03449): knowledge measurement (divergence, knowledge), knowledge-preserving mask search
(search) and knowledge-preserving weight tuning (tuning). A docstring says so where a function goes beyond the paper.
"""
