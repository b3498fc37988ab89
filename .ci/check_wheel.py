"""The wheel holds what a user needs without a checkout, and stays small."""

import sys
import zipfile
from pathlib import Path

path = Path(sys.argv[1])
names = set(zipfile.ZipFile(path).namelist())
# by name: the folders of the data are not part of what is promised
needed = [
    "py.typed",
    "glyphs.xz",
    "cifar100_splits.txt",
    "omniglot_vinyals.txt",
    "NOTICE-glyphs.md",
    "typeset_digits.xz",
    "NOTICE-typeset-digits.md",
    "conv4_glyphs.safetensors",
]
files = {name.rpartition("/")[2]: name for name in names if name.startswith("metatransfer/")}
missing = [name for name in needed if name not in files]
configs = Path(__file__).parents[1] / "configs"
missing += [
    name
    for name in (path.relative_to(configs.parent).as_posix() for path in configs.rglob("*.yaml"))
    if f"metatransfer/{name}" not in names
]
if missing:
    sys.exit(f"the wheel lacks {missing}")
glyphs = zipfile.ZipFile(path).getinfo(files["glyphs.xz"]).file_size
for what, size, limit in (("glyphs.xz", glyphs, 5_000_000), ("the wheel", path.stat().st_size, 6_000_000)):
    if size > limit:
        sys.exit(f"{what} has {size} bytes, more than {limit / 1e6:.0f} MB")
print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {len(names)} files")
