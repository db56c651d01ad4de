"""States lie in memory that is asked of the system in large pieces."""

import torch

from optimum_kprune.prune import state_store
from optimum_kprune.prune.state_store import StateStore


def memory_of(tensor):
    return tensor.untyped_storage().data_ptr()


def test_small_states_share_a_piece_of_memory_and_no_place_in_it():
    states = StateStore().states(3)
    tensors = [torch.full((3, 5), 1.0), torch.full((4,), 2.0), torch.full((2, 2), 3.0, dtype=torch.bfloat16)]
    for index, tensor in enumerate(tensors):
        states[index] = tensor
    held = list(states)
    assert all(map(torch.equal, held, tensors))
    assert memory_of(held[0]) == memory_of(held[1]) != memory_of(held[2])


def test_a_state_that_no_piece_has_room_for_gets_one(monkeypatch):
    monkeypatch.setattr(state_store, "SLAB", 10 * 4)
    states = StateStore().states(4)
    for index, count in enumerate((6, 5, 100, 5)):
        states[index] = torch.full((count,), float(index))
    assert all((state == index).all() for index, state in enumerate(states))
    assert len({memory_of(state) for state in states}) > 1
