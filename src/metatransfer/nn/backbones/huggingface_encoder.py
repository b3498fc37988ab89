"""Pretrained text encoders of Hugging Face, from files on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.batches import Inputs
from metatransfer.checks import check_choice, check_fraction
from metatransfer.errors import UserError
from metatransfer.model_folders import find_model_folder
from metatransfer.nn.backbones.backbone import Backbone
from metatransfer.nn.weights import WeightsReport, weight_files_are_read

Pooling = Literal["mean", "cls"]
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "hidden_dropout")


class HuggingFaceEncoder(Backbone):
    r"""An encoder of the package ``transformers`` (extra ``text``): BERT, RoBERTa, MiniLM, DistilBERT, MPNet, ...

    Its features are the last hidden states of a text's tokens, pooled to one vector: their mean
    :math:`\sum_l m_l h_l / \sum_l m_l` over the tokens that are no padding, as sentence encoders take it (Reimers and
    Gurevych 2019, 1908.10084), or the state of the first token, as BERT's classifiers do (Devlin et al. 2019,
    1810.04805). Only files on this machine are read, and none that could run code. The data must have the tokeniser of
    the same name::

        lightning fit ... --model.backbone HuggingFaceEncoder --model.backbone.name package:NAME
            --data TextDataModule --data.tokenizer package:NAME

    Args:
        name: a folder with ``config.json`` and weights; ``package:NAME``, one inside of an installed Python package; or
            a Hugging Face name that is in the local cache.
        pooling: ``"mean"`` or ``"cls"``.
        weights: ``"default"``, those of the folder; ``null``, none, so that training starts from random ones; or a file
            of weights of this class, see :func:`metatransfer.nn.load_weights`.
        normalize: whether features have length 1, as many sentence encoders were trained with.
        dropout: probability of dropping in all layers; that of the folder where left out.
        config: content of a ``config.json``, for a network without its folder; checkpoints note it here.

    Attributes:
        max_length: tokens that a text may have; ``None`` where any number goes.
        vocabulary_size: how many tokens the network knows.

    Raises:
        UserError: the extra or a file is missing or damaged, another kind of network, or an unknown ``pooling``.
    """

    def __init__(
        self,
        name: str,
        pooling: Pooling = "mean",
        weights: str | None = "default",
        normalize: bool = False,
        dropout: float | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, ("mean", "cls"))
        if dropout is not None:
            check_fraction(dropout=dropout)
        self.name, self.pooling, self.normalize = name, pooling, normalize
        read = weights == "default" and weight_files_are_read()
        folder = None
        if config is None or read:
            folder = find_model_folder(name, ["config.json"], "encoder")
        if config is None and folder is not None:
            config = _read_config(folder)
        assert config is not None
        if type(self).__init__ is HuggingFaceEncoder.__init__:
            # a checkpoint that names the arguments can then be loaded where the folder is gone
            self.__dict__["_init_arguments"]["config"] = config
        built = _built_config(config, name, dropout)
        model: Any
        if read and folder is not None:
            model, self.weights_report = _pretrained(folder, built)
        else:
            model = _untrained(built, name)
        if isinstance(getattr(model, "pooler", None), nn.Module):
            model.pooler = None  # not looked at; processes would wait in vain for its gradients
        self.model: nn.Module = model.train()
        self.out_features = int(built.hidden_size)
        self.vocabulary_size = int(built.vocab_size)
        self.max_length = _positions(self.model, built)
        self._ids_checked = False
        if weights != "default":
            self.load_weights(weights)

    def forward(self, x: Inputs) -> Tensor:
        """Texts ``(N, L)`` to ``(N, hidden size)``.

        Raises:
            UserError: samples that are no texts, longer ones than the network has positions for, or other tokens than
                the network knows.
        """
        if isinstance(x, Tensor):
            raise UserError(
                f"HuggingFaceEncoder reads texts as Tokens, but the samples are a tensor of shape {tuple(x.shape)}: "
                "give it a data module of texts, such as TextDataModule."
            )
        ids, mask = x
        self._check(ids)
        states: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.pooling == "mean":
            weight = mask.to(states.dtype)
            features = torch.einsum("nle,nl->ne", states, weight) / weight.sum(1, keepdim=True).clamp(min=1)
        else:
            features = states[:, 0]
        return F.normalize(features, dim=1) if self.normalize else features

    def _check(self, ids: Tensor) -> None:
        if self.max_length is not None and ids.shape[1] > self.max_length:
            raise UserError(
                f"encoder '{self.name}' has positions for {self.max_length} tokens, but a text has {ids.shape[1]}: "
                f"set the data's max_length to {self.max_length} or less."
            )
        if not self._ids_checked:  # once, as it waits for the device
            if ids.numel() and int(ids.max()) >= self.vocabulary_size:
                raise UserError(
                    f"encoder '{self.name}' knows {self.vocabulary_size} tokens, but the data has number "
                    f"{int(ids.max())}: set the data's tokenizer to that of the encoder, '{self.name}'."
                )
            self._ids_checked = True


def _transformers(name: str) -> Any:  # noqa: ANN401
    """The package, which takes seconds to import.

    Raises:
        UserError: it is missing.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"encoder '{name}' needs the package transformers: install the extra, pip install 'metatransfer[text]'."
        ) from error
    return transformers


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{file}' is no JSON ({error}): fetch it again.") from error
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise UserError(f"'{file}' must be an object with model_type: fetch the config.json of a transformers model.")
    return content


def _built_config(content: dict[str, Any], name: str, dropout: float | None) -> Any:  # noqa: ANN401
    """The config as transformers has it.

    Raises:
        UserError: of a model that it does not know, or of no encoder.
    """
    transformers = _transformers(name)
    plain = {key: value for key, value in content.items() if key not in ("model_type", "auto_map", "dtype")}
    kind = content.get("model_type")
    try:
        config = transformers.AutoConfig.for_model(kind, **plain)
    except Exception as error:  # unknown kinds and values that do not fit each other, by whatever is raised
        raise UserError(
            f"encoder '{name}' is of model_type '{kind}', whose config transformers {transformers.__version__} does "
            f"not take ({_short(error)}): take a model that it has, or another version."
        ) from error
    sizes = [getattr(config, size, None) for size in ("hidden_size", "vocab_size")]
    if config.is_encoder_decoder or not all(isinstance(size, int) for size in sizes):
        raise UserError(
            f"encoder '{name}' is of model_type '{kind}', which is no text encoder: take one that is, such as BERT, "
            "RoBERTa, MiniLM, DistilBERT or MPNet."
        )
    if dropout is not None:
        for known in _DROPOUTS:
            if hasattr(config, known):
                setattr(config, known, dropout)
    return config


def _untrained(config: Any, name: str) -> nn.Module:  # noqa: ANN401
    try:
        network: nn.Module = _transformers(name).AutoModel.from_config(config, dtype=torch.float32)
    except Exception as error:
        raise UserError(
            f"encoder '{name}' cannot be built from its config ({_short(error)}): mend config.json."
        ) from error
    return network


def _pretrained(folder: Path, config: Any) -> tuple[nn.Module, WeightsReport]:  # noqa: ANN401
    """The network with the weights of its folder, and what became of them.

    Raises:
        UserError: no weights, damaged ones, or those of another network.
    """
    files, safe = _weight_files(folder)
    with _quiet():
        try:
            network, found = _transformers(str(folder)).AutoModel.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=safe, weights_only=True,
                trust_remote_code=False, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
        except Exception as error:
            raise UserError(
                f"the weights in '{folder}' cannot be read ({_short(error)}): fetch {files[0].name} again."
            ) from error
    pooler = {name for name, _ in network.named_parameters() if name.startswith("pooler.")}
    # with their shapes since transformers 5
    wrong = [entry if isinstance(entry, str) else str(entry[0]) for entry in found["mismatched_keys"]]
    own = [name for name in network.state_dict() if name not in pooler]
    new = [name for name in own if name in {*found["missing_keys"], *wrong}]
    if new:
        raise UserError(
            f"the weights in '{folder}' do not fit its config.json: {len(new)} of {len(own)} tensors are missing or of "
            f"another shape ({', '.join(new[:3])}): fetch both files again, from one model."
        )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            for block in iter(lambda: content.read(1 << 20), b""):
                digest.update(block)
    dropped = dict.fromkeys(sorted(found["unexpected_keys"]), "not in the network")
    name = f"{files[0].name}{f' and {len(files) - 1} more' if len(files) > 1 else ''}"
    kept = tuple(f"model.{key}" for key in own)
    return network, WeightsReport(name, digest.hexdigest(), kept, dropped, ())


def _weight_files(folder: Path) -> tuple[list[Path], bool]:
    """The files of weights, in one piece or several, and whether they are safetensors.

    Raises:
        UserError: there are none.
    """
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        found = sorted([*folder.glob(f"{stem}.{ending}"), *folder.glob(f"{stem}-*-of-*.{ending}")])
        if found:
            return found, ending == "safetensors"
    raise UserError(
        f"encoder: folder '{folder}' has no model.safetensors: fetch it into the folder, or set weights to null to "
        "start from random ones."
    )


def _positions(network: nn.Module, config: Any) -> int | None:  # noqa: ANN401
    """How many tokens have a position; some networks leave out those up to the padding's number."""
    positions = getattr(config, "max_position_embeddings", None)
    table = getattr(getattr(network, "embeddings", None), "position_embeddings", None)
    if not isinstance(positions, int) or positions < 1 or not isinstance(table, nn.Embedding):
        return None  # relative positions, say
    return positions - (table.padding_idx + 1 if table.padding_idx is not None else 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and its lists of weights; ours come with the method."""
    logging = _transformers("").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _short(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:160]
