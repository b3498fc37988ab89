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
    "metatransfer/nn/pretrained/conv4_glyphs.safetensors",
]
missing = [name for name in needed if name not in names]
if missing:
    sys.exit(f"the wheel lacks {missing}")
if path.stat().st_size > 5_000_000:
    sys.exit(f"the wheel has {path.stat().st_size} bytes, more than 5 MB")
print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {len(names)} files")
