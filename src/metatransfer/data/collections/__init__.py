"""Collections: one class for each kind of data or data set."""

from metatransfer.data.collections.arrays import Arrays
from metatransfer.data.collections.babi import Babi
from metatransfer.data.collections.cifar_few_shot import CIFARFewShot
from metatransfer.data.collections.digit_sets import MNIST, MNISTM, SVHN, SYN, USPS
from metatransfer.data.collections.gaussian_processes import GaussianProcesses
from metatransfer.data.collections.glyphs import Digits, Glyphs, TypesetDigits
from metatransfer.data.collections.image_folder import ImageFolder
from metatransfer.data.collections.image_table import ImageTable
from metatransfer.data.collections.learn2learn import Learn2Learn
from metatransfer.data.collections.omniglot import Omniglot
from metatransfer.data.collections.paths import describe_path, open_path
from metatransfer.data.collections.sinusoids import Sinusoids
from metatransfer.data.collections.synthetic_tables import SyntheticTables
from metatransfer.data.collections.table import Table
from metatransfer.data.collections.texts import Texts
from metatransfer.data.collections.torchvision_dataset import TorchvisionDataset
from metatransfer.data.sources import Collection, LazyParts

__all__ = [
    "MNIST",
    "MNISTM",
    "SVHN",
    "SYN",
    "USPS",
    "Arrays",
    "Babi",
    "CIFARFewShot",
    "Collection",
    "Digits",
    "GaussianProcesses",
    "Glyphs",
    "ImageFolder",
    "ImageTable",
    "LazyParts",
    "Learn2Learn",
    "Omniglot",
    "Sinusoids",
    "SyntheticTables",
    "Table",
    "Texts",
    "TorchvisionDataset",
    "TypesetDigits",
    "describe_path",
    "open_path",
]
