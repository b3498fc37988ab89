"""The wheel holds what a user needs without a checkout, and stays small."""

import sys
import zipfile
from pathlib import Path

path = Path(sys.argv[1])
names = set(zipfile.ZipFile(path).namelist())
needed = [
    "metatransfer/py.typed",
    "metatransfer/data/glyphs.xz",
    "metatransfer/data/omniglot_vinyals.txt",
    "metatransfer/data/NOTICE-glyphs.md",
    "metatransfer/data/typeset_digits.xz",
    "metatransfer/data/NOTICE-typeset-digits.md",
    "metatransfer/nn/pretrained/conv4_glyphs.safetensors",
]
missing = [name for name in needed if name not in names]
if missing:
    sys.exit(f"the wheel lacks {missing}")
for what, size, limit in (
    ("glyphs.xz", zipfile.ZipFile(path).getinfo("metatransfer/data/glyphs.xz").file_size, 5_000_000),
    ("the wheel", path.stat().st_size, 6_000_000),
):
    if size > limit:
        sys.exit(f"{what} has {size} bytes, more than {limit / 1e6:.0f} MB")
print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {len(names)} files")
