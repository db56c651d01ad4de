"""Hidden states in memory and on disk: the same bits, within the budget, and a disk that is full in words."""

import resource
import subprocess
import tempfile
from contextlib import contextmanager

import pytest
import torch
from tiny import batches_of, ragged_samples, same_state, tiny_model

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.prune import state_store
from optimum_kprune.prune.state_store import StateStore

SAMPLES = ragged_samples(36)


def prune(model, batches, memory_budget=None):
    found = KPruner(model)
    found.prune(KPruneConfig(num_tokens=None, measure_tokens=None, memory_budget=memory_budget), batches)
    return found


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The temporary folder of the system, to look into."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def small_disk(temporary):
    """The temporary folder with a disk of its own that holds 300 KiB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", temporary], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield temporary
    subprocess.run(["umount", temporary], check=True)


@contextmanager
def largest_file(size):
    """Lets this process write no file beyond a size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "head",
    [
        "single label",
        *(pytest.param(head, marks=pytest.mark.slow) for head in ("masked language model", "multiple choice")),
    ],
)
@pytest.mark.parametrize("budget", [0, 20_000])
def test_states_on_disk_give_the_same_bits(head, budget, temporary, monkeypatch):
    """The file that holds them has no name, so that no death of the process can leave it."""
    samples = ragged_samples(36, choices=3 if head == "multiple choice" else None)
    batches, written = batches_of(samples, 7), []
    expected = prune(tiny_model(head=head), batches)
    original = StateStore._write

    def watched(store, *args):
        original(store, *args)
        written.append(list(temporary.iterdir()))

    monkeypatch.setattr(StateStore, "_write", watched)
    found = prune(tiny_model(head=head), batches, memory_budget=budget)
    assert same_state(expected.model, found.model) and expected.result.kept == found.result.kept
    assert written and not any(written)


def test_a_store_keeps_to_its_budget(temporary):
    tensors = [torch.randn(3, 5, 2), torch.randn(3, 4).to(torch.bfloat16), torch.zeros(0, 3), torch.randn(2, 2)]
    with StateStore(tensors[0].nbytes + 3) as store:
        states = store.states(5)
        for index, tensor in enumerate(tensors):
            states[index] = tensor
        assert store.bytes_in_memory == tensors[0].nbytes
        assert store.bytes_in_file == tensors[1].nbytes + tensors[3].nbytes
        assert states[4] is None
        for state, tensor in zip(states, tensors, strict=False):
            assert torch.equal(state, tensor) and (state.dtype, state.shape) == (tensor.dtype, tensor.shape)
        states[0] = tensors[3]
        states[3] = tensors[1]
        assert store.bytes_in_memory == tensors[3].nbytes + tensors[1].nbytes
        assert torch.equal(states[0], tensors[3]) and torch.equal(states[3], tensors[1])
    assert not list(temporary.iterdir())


def test_room_in_the_file_is_used_again(temporary):
    with StateStore(0) as store:
        states = store.states(2)
        for value in range(5):
            states[0], states[1] = torch.full((3, 2), 1.0 * value), torch.full((4,), -1.0 * value)
            assert (states[0] == value).all() and (states[1] == -value).all()
        states.clear()
        states[1], states[0] = torch.ones(3, 2), torch.zeros(4)
        assert (states[0] == 0).all() and (states[1] == 1).all()
        assert store.bytes_in_file == (3 * 2 + 4) * 4


def test_a_store_without_a_limit_has_no_file(temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    with StateStore() as store:
        states = store.states(1)
        states[0] = kept = torch.randn(100, 100)
        assert torch.equal(states[0], kept)


def test_states_are_replaced_in_place():
    with StateStore(memory_budget=4000) as store:
        states = store.states(1)
        states[0] = torch.ones(10, 10)
        held = states[0]
        states[0] = torch.full((10, 10), 2.0)
        assert states[0] is held and (held == 2).all() and store.bytes_in_memory == 400
        states[0] = torch.ones(5, 10)
        assert states[0].shape == (5, 10) and (held == 2).all() and store.bytes_in_memory == 200


# Disks that are full


def require_in_words(error, folder, *parts):
    expected = ("`memory_budget` of 0 bytes", repr(str(folder)), "TMPDIR", *parts)
    assert all(part in str(error) for part in expected), error


def test_a_disk_that_fills_in_a_prune_is_told_in_words(small_disk):
    with pytest.raises(OSError) as caught:
        prune(tiny_model(), batches_of(ragged_samples(1000), 100), memory_budget=0)
    require_in_words(caught.value, small_disk, "No space left on device", "bytes more were needed, and 0 are free")
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_keeps_what_was_written(small_disk):
    """Whatever fits comes back whole: what does not is an error before it is read, never a broken page."""
    tensors = [torch.randn(10_000) for _ in range(20)]
    with StateStore(0) as store:
        states = store.states(len(tensors))
        with pytest.raises(OSError, match="40,000 bytes more were needed"):
            for index, tensor in enumerate(tensors):
                states[index] = tensor
        assert index == 300 * 1024 // 40_000
        assert all(torch.equal(states[place], tensors[place]) for place in range(index))


def test_a_limit_of_file_sizes_is_told_in_words(temporary):
    with largest_file(100_000), StateStore(0) as store, pytest.raises(OSError) as caught:
        states = store.states(20)
        for index in range(20):
            states[index] = torch.ones(10_000)
    require_in_words(caught.value, temporary, "File too large", "40,000 bytes")


def test_a_temporary_folder_that_is_gone_is_told_in_words(temporary):
    temporary.rmdir()
    with pytest.raises(OSError) as caught:
        prune(tiny_model(), batches_of(SAMPLES), memory_budget=0)
    require_in_words(caught.value, temporary, "No such file or directory")


def test_states_outlive_a_cleaner_of_the_temporary_folder(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with StateStore(0) as store:
        states = store.states(2)
        states[0] = torch.ones(5)
        folder.rmdir()
        states[1] = torch.zeros(5)
        assert (states[0] == 1).all() and (states[1] == 0).all()


def test_the_default_device_of_torch_does_not_matter():
    states = StateStore(memory_budget=0).states(1)
    tensor = torch.arange(6.0).view(2, 3)
    states[0] = tensor
    with torch.device("meta"):
        found = states[0]
    assert torch.equal(found, tensor)


# Slabs


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
