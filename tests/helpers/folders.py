"""Output folders: written, read, and made on purpose."""

from optimum_kprune.folder import written_whole

NOBODY = 65534
FILES = {"config.json": "{}", "model.safetensors": "weights", "1_Pooling/config.json": "pooling"}


def write(place, overwrite=False, files=FILES):
    with written_whole(place, overwrite) as draft:
        for name, text in files.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_text(text)


def content(place):
    return {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}


def everything(place):
    return sorted(path.name for path in place.rglob("*"))


def empty_folder(root):
    (root / "out").mkdir()
    return root / "out"
