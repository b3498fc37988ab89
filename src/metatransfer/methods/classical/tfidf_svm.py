"""TF-IDF with a linear support vector machine."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.batches import Inputs, LabelledBatch, Predictions, UnlabelledBatch
from metatransfer.checks import check_positive
from metatransfer.data_info import ReadsSamples, ServesSamples, datamodule_of, info_of
from metatransfer.errors import UserError
from metatransfer.methods.classifier import ClassifierModule
from metatransfer.methods.fitted import FittedModule


class TfidfSVMModule(FittedModule, ClassifierModule):
    r"""Words and pairs of words, weighted by TF-IDF and classified by a linear SVM.

    .. math:: x_{dw} = (1+\log n_{dw})\,\Bigl(1+\log\frac{1+N}{1+N_w}\Bigr), \qquad \lVert x_d\rVert = 1

    scikit-learn's ``TfidfVectorizer`` (sublinear counts) and ``LinearSVC``: Sparck Jones 1972 (J. Doc. 28), Joachims
    1998 (ECML); a strong baseline for networks (Zhang, Zhao, LeCun 2015, 1509.01626). The softmax of the margins is no
    calibrated probability. The method reads the texts themselves; ``data.tokenizer`` is not used.

    Args:
        num_classes: number of classes; on the command line taken from the data.
        ngrams: largest number of consecutive words in a feature.
        min_count: smallest number of texts in which a feature must occur.
        C: inverse of the regularisation strength.

    Raises:
        UserError: a number is not positive, or ``num_classes`` is missing.
    """

    cannot_export = "it reads the words of texts, and an exported file takes tensors: keep its checkpoint"

    def __init__(self, num_classes: int | None = None, ngrams: int = 2, min_count: int = 1, C: float = 1.0) -> None:
        super().__init__(num_classes)
        check_positive(ngrams=ngrams, min_count=min_count, C=C)
        self.ngrams, self.min_count, self.C = ngrams, min_count, C
        self.terms: list[str] = []
        self.learned: dict[str, Tensor] = {}
        self._vectorizer: Any = None
        self._predicted = 0

    @property
    def calibrated(self) -> bool:
        """``False``: the outputs are margins."""
        return False

    def setup(self, stage: str) -> None:
        """Checks that the data are texts."""
        super().setup(stage)
        data, info = datamodule_of(self), info_of(self) if stage != "predict" else None
        self._predicted = 0
        if not isinstance(data, ServesSamples) or (info is not None and info.sample_shape):
            raise UserError(
                f"{type(self).__name__} classifies texts, but {type(data).__name__} serves none: use a "
                "LabelledDataModule with source=Texts."
            )

    @staticmethod
    def _texts(data: ServesSamples, split: str, numbers: Iterable[int]) -> list[str]:
        return [str(data.show(split, number)) for number in numbers]

    def _new_vectorizer(self) -> Any:  # noqa: ANN401
        from sklearn.feature_extraction.text import TfidfVectorizer  # a second that other runs need not pay

        return TfidfVectorizer(ngram_range=(1, self.ngrams), min_df=self.min_count, sublinear_tf=True)

    def fit_data(self, data: ServesSamples) -> None:
        """Fits the pipeline to the training texts."""
        from sklearn.svm import LinearSVC

        vectorizer, labels = self._new_vectorizer(), data.labels("train")
        try:
            x = vectorizer.fit_transform(self._texts(data, "train", range(len(labels))))
        except ValueError as error:
            raise UserError(
                f"no word of the training texts occurs in min_count={self.min_count} of them: lower it, or check the "
                "texts."
            ) from error
        machine = LinearSVC(C=self.C, dual="auto", random_state=0).fit(x, labels.numpy())
        found = {"idf": vectorizer.idf_, "weight": machine.coef_, "bias": machine.intercept_}
        if len(machine.coef_) == 1:  # two classes share one machine
            found |= {name: np.concatenate([-found[name], found[name]]) for name in ("weight", "bias")}
        self.terms = vectorizer.get_feature_names_out().tolist()
        self.learned = {name: torch.from_numpy(array) for name, array in found.items()}
        self._vectorizer = vectorizer

    def scores(self, texts: Sequence[str]) -> Tensor:
        """The margins ``(N, C)`` of texts, float64; raises an error before the fit."""
        if not self.learned:
            raise UserError(f"{type(self).__name__} is not fitted yet: fit it, or give --ckpt_path of a fitted run.")
        if self._vectorizer is None:
            self._vectorizer = self._new_vectorizer()
            self._vectorizer.vocabulary_ = {term: place for place, term in enumerate(self.terms)}
            self._vectorizer.idf_ = self.learned["idf"].numpy()
        x = self._vectorizer.transform(texts)
        return torch.from_numpy(x @ self.learned["weight"].numpy().T + self.learned["bias"].numpy()).to(self.device)

    def forward(self, x: Inputs) -> Tensor:
        """Raises an error: tokens are not texts."""
        raise UserError(f"{type(self).__name__} takes texts, not their tokens: use scores(texts).")

    def outputs(self, batch: LabelledBatch, stage: str) -> Tensor:
        """The margins of the texts of a batch."""
        assert batch.number is not None
        return self.scores(self._texts(datamodule_of(self), stage, batch.number.tolist()))

    def training_loss(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """The cross-entropy of the fitted classifier and the margins, for logging."""
        outputs = self.outputs(batch, "train")
        return F.cross_entropy(outputs.float(), batch.y), outputs

    def predictions(self, samples: Any, data: ReadsSamples | None = None) -> Predictions:  # noqa: ANN401
        """Labels a list of texts, see :class:`ClassifierModule`; no data module is needed."""
        if isinstance(samples, str) or not len(samples):
            raise UserError("the samples to label must be a list of texts; lightning predict reads files of texts.")
        return Predictions(tuple(samples), self.class_names, self.scores(samples).float().softmax(-1).cpu())

    def predict_step(self, batch: UnlabelledBatch, batch_idx: int = 0) -> Predictions:
        """Labels texts, which must come in the order of the data."""
        last = self._predicted + len(batch.files)
        texts = self._texts(datamodule_of(self), "predict", range(self._predicted, last))
        self._predicted = last
        return Predictions(batch.files, self.class_names, self.scores(texts).float().softmax(-1).cpu())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds vocabulary and weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["terms"], checkpoint["pipeline"] = self.terms, self.learned

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores vocabulary and weights."""
        super().on_load_checkpoint(checkpoint)
        self.terms, self.learned = list(checkpoint["terms"]), dict(checkpoint["pipeline"])
        self._vectorizer = None

    def protocol(self) -> dict[str, Any]:
        """Adds the features and the regularisation."""
        return super().protocol() | {"ngrams": self.ngrams, "train_min_count": self.min_count, "train_C": self.C}
