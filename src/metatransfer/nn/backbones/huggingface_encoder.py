"""Pretrained text encoders of Hugging Face, from local files."""

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
from metatransfer.errors import UserError, explained
from metatransfer.model_folders import find_model_folder
from metatransfer.nn.backbones.backbone import Backbone
from metatransfer.nn.backbones.token_average import check_tokens, mean_of_tokens
from metatransfer.nn.weights import WeightsReport, sha256, weight_files_are_read

Pooling = Literal["mean", "cls"]
# of config.json: what could load code of the folder or of the internet, and what is decided here
_LEFT_OUT = {"model_type", "auto_map", "dtype", "attn_implementation", "experts_implementation", "quantization_config"}
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "hidden_dropout")


class HuggingFaceEncoder(Backbone):
    r"""An encoder of the package ``transformers`` (extra ``text``): BERT, RoBERTa, MiniLM, DistilBERT, MPNet, ...

    The features of a text are its last hidden states, pooled to one vector: the mean
    :math:`\sum_l m_l h_l / \sum_l m_l` over all tokens but padding, as in sentence encoders (Reimers and Gurevych 2019,
    1908.10084), or the state of the first token, as in BERT's classifiers (Devlin et al. 2019, 1810.04805). Only local
    files are read, and none that could run code. The data must use the tokenizer of the same name::

        lightning fit ... --model.backbone HuggingFaceEncoder --model.backbone.name package:NAME
            --data.source.tokenizer package:NAME

    Args:
        name: a folder with ``config.json`` and weights; ``package:NAME`` for a folder in an installed Python package;
            or a Hugging Face name in the local cache.
        pooling: ``"mean"`` or ``"cls"``.
        weights: ``"default"`` for the weights in the folder; ``null`` for random weights; or a file of weights of this
            class, see :func:`metatransfer.nn.load_weights`.
        normalize: whether to scale features to length 1, as many sentence encoders do.
        dropout: dropout probability of all layers; defaults to that of the model.
        config: content of ``config.json``, if there is no folder; checkpoints store it here.

    Attributes:
        max_length: maximal number of tokens of a text; ``None`` for no limit.
        vocabulary_size: number of tokens that the network knows.

    Raises:
        UserError: ``transformers`` or a file is missing or damaged, the model is not an encoder, or ``pooling`` is
            unknown.
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
        folder = find_model_folder(name, ["config.json"], "encoder") if config is None or read else Path()
        config = _read_config(folder) if config is None else config
        if type(self).__init__ is HuggingFaceEncoder.__init__:
            # a checkpoint can then be loaded without the folder
            self.__dict__["_init_arguments"]["config"] = config
        built = _built_config(config, name, dropout)
        model: Any
        if read:
            model, self.weights_report = _pretrained(folder, built)
        else:
            model = _untrained(built, name)
        if isinstance(getattr(model, "pooler", None), nn.Module):
            model.pooler = None  # unused, and distributed training would wait for its gradients
        self.model: nn.Module = model.train()
        self.out_features = int(built.hidden_size)
        self.vocabulary_size = int(built.vocab_size)
        self.max_length = _positions(self.model, built)
        self._ids_checked = False
        if weights != "default":
            self.load_weights(weights)

    def forward(self, x: Inputs) -> Tensor:
        """Texts ``(N, L)`` to ``(N, hidden size)``."""
        ids, mask = check_tokens(x, "HuggingFaceEncoder")
        self._check(ids)
        states: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        features = mean_of_tokens(states, mask) if self.pooling == "mean" else states[:, 0]
        return F.normalize(features, dim=1) if self.normalize else features

    def _check(self, ids: Tensor) -> None:
        if self.max_length is not None and ids.shape[1] > self.max_length:
            raise UserError(
                f"encoder '{self.name}' has positions for {self.max_length} tokens, but a text has {ids.shape[1]}: "
                f"set the data's max_length to {self.max_length} or less."
            )
        if not self._ids_checked:  # only once, because it waits for the GPU
            if ids.numel() and int(ids.max()) >= self.vocabulary_size:
                raise UserError(
                    f"encoder '{self.name}' knows {self.vocabulary_size} tokens, but the data has number "
                    f"{int(ids.max())}: set the data's tokenizer to that of the encoder, '{self.name}'."
                )
            self._ids_checked = True


def _transformers(name: str) -> Any:  # noqa: ANN401
    extra = "install the extra, pip install 'metatransfer[text]'"
    with explained(f"encoder '{name}' needs the package transformers", extra, ImportError, quoted=False):
        import transformers  # takes seconds
    return transformers


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    with explained(f"'{file}' is not valid JSON", "download it again", ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise UserError(f"'{file}' must be an object with model_type: download config.json of a transformers model.")
    return content


def _built_config(content: dict[str, Any], name: str, dropout: float | None) -> Any:  # noqa: ANN401
    transformers = _transformers(name)
    plain = {key: value for key, value in content.items() if key[0] != "_" and key not in _LEFT_OUT}
    kind = content.get("model_type")
    problem = f"whose config transformers {transformers.__version__} does not accept"
    remedy = "use a model that it supports, or another version"
    with explained(f"encoder '{name}' is of model_type '{kind}', {problem}", remedy):
        config = transformers.AutoConfig.for_model(kind, **plain)
    sizes = [getattr(config, size, None) for size in ("hidden_size", "vocab_size")]
    if config.is_encoder_decoder or not all(isinstance(size, int) for size in sizes):
        raise UserError(
            f"encoder '{name}' is of model_type '{kind}', which is not a text encoder: use BERT, RoBERTa, MiniLM, "
            "DistilBERT, MPNet or another encoder."
        )
    if dropout is not None:
        for known in _DROPOUTS:
            if hasattr(config, known):
                setattr(config, known, dropout)
    return config


def _untrained(config: Any, name: str) -> nn.Module:  # noqa: ANN401
    with explained(f"encoder '{name}' cannot be built from its config", "fix config.json"):
        network: nn.Module = _transformers(name).AutoModel.from_config(config, dtype=torch.float32)
    return network


def _pretrained(folder: Path, config: Any) -> tuple[nn.Module, WeightsReport]:  # noqa: ANN401
    files, safe = _weight_files(folder)
    with _quiet(), explained(f"the weights in '{folder}' cannot be read", f"download {files[0].name} again"):
        network, found = _transformers(str(folder)).AutoModel.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=safe, weights_only=True,
            trust_remote_code=False, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    pooler = {name for name, _ in network.named_parameters() if name.startswith("pooler.")}
    # transformers 5 adds the shapes
    wrong = [entry if isinstance(entry, str) else str(entry[0]) for entry in found["mismatched_keys"]]
    own = [name for name in network.state_dict() if name not in pooler]
    new = [name for name in own if name in {*found["missing_keys"], *wrong}]
    if new:
        raise UserError(
            f"the weights in '{folder}' do not fit its config.json: {len(new)} of {len(own)} tensors are missing or of "
            f"another shape ({', '.join(new[:3])}): download both files again, from one model."
        )
    dropped = dict.fromkeys(sorted(found["unexpected_keys"]), "not in the network")
    name = f"{files[0].name}{f' and {len(files) - 1} more' if len(files) > 1 else ''}"
    kept = tuple(f"model.{key}" for key in own)
    return network, WeightsReport(name, sha256(*files), kept, dropped, ())


def _weight_files(folder: Path) -> tuple[list[Path], bool]:
    # and whether they are safetensors
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        found = sorted([*folder.glob(f"{stem}.{ending}"), *folder.glob(f"{stem}-*-of-*.{ending}")])
        if found:
            return found, ending == "safetensors"
    raise UserError(
        f"encoder: folder '{folder}' has no model.safetensors: download it into the folder, or set weights to "
        "null for random weights."
    )


def _positions(network: nn.Module, config: Any) -> int | None:  # noqa: ANN401
    """The maximal number of tokens; some networks do not use the positions up to the padding index."""
    positions = getattr(config, "max_position_embeddings", None)
    table = getattr(getattr(network, "embeddings", None), "position_embeddings", None)
    if not isinstance(positions, int) or positions < 1 or not isinstance(table, nn.Embedding):
        return None  # e.g. relative positions
    return positions - (table.padding_idx + 1 if table.padding_idx is not None else 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the progress bars and reports of transformers; the package has its own report."""
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
