"""TF-IDF with a linear support vector machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metatransfer.batches import Inputs, LabelledBatch, Predictions, UnlabelledBatch
from metatransfer.checks import check_positive
from metatransfer.errors import UserError
from metatransfer.methods.fitted import FittedModule


class TfidfSVMModule(FittedModule):
    r"""Words and pairs of words, weighed by their rarity, through a linear SVM: what texts were classified by before.

    .. math:: x_{dw} = (1+\log n_{dw})\,\Bigl(1+\log\frac{1+N}{1+N_w}\Bigr), \qquad \lVert x_d\rVert = 1

    scikit-learn's pipeline of ``TfidfVectorizer`` (sublinear counts) and ``LinearSVC``: Sparck Jones 1972 (J. Doc. 28),
    Joachims 1998 (ECML); a baseline that networks have to beat (Zhang, Zhao, LeCun 2015, 1509.01626). Its margins order
    the classes, but their softmax is no probability. It reads the texts themselves; ``data.tokenizer`` plays no part.

    Args:
        num_classes: number of classes; on the command line taken from the data.
        ngrams: up to how many words in a row make a feature.
        min_count: texts in which a feature must occur.
        C: inverse strength of the regularisation.

    Raises:
        UserError: a number that is not above 0, or ``num_classes`` missing.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        ngrams: int = 2,
        min_count: int = 1,
        C: float = 1.0,
    ) -> None:
        super().__init__(num_classes)
        check_positive(ngrams=ngrams, min_count=min_count, C=C)
        self.ngrams, self.min_count, self.C = ngrams, min_count, C
        self.terms: list[str] = []
        self.learned: dict[str, Tensor] = {}
        self._vectorizer: Any = None
        self._texts: dict[str, list[str]] = {}

    def setup(self, stage: str) -> None:
        """As of the base.

        Raises:
            UserError: data without texts.
        """
        super().setup(stage)
        self._texts = {}
        data = getattr(self._trainer, "datamodule", None)
        if not hasattr(data, "texts"):
            raise UserError(
                f"{type(self).__name__} classifies texts, but {type(data).__name__} serves none: give it a "
                "TextDataModule."
            )

    # ---- the fit

    def _new_vectorizer(self) -> Any:  # noqa: ANN401
        from sklearn.feature_extraction.text import TfidfVectorizer  # a second that other runs need not pay

        return TfidfVectorizer(ngram_range=(1, self.ngrams), min_df=self.min_count, sublinear_tf=True)

    def fit_data(self, data: Any) -> None:  # noqa: ANN401
        """Fits the pipeline to the training texts.

        Raises:
            UserError: no feature is left.
        """
        from sklearn.svm import LinearSVC

        vectorizer = self._new_vectorizer()
        try:
            x = vectorizer.fit_transform(data.texts("train"))
        except ValueError as error:
            raise UserError(
                f"no word of the training texts occurs in min_count={self.min_count} of them: lower it, or look at the "
                "texts."
            ) from error
        machine = LinearSVC(C=self.C, dual="auto", random_state=0).fit(x, data.split("train").labels)
        weight, bias = machine.coef_, machine.intercept_
        if len(weight) == 1:  # two classes share one machine
            weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
        self.terms = vectorizer.get_feature_names_out().tolist()
        self.learned = {
            "idf": torch.from_numpy(vectorizer.idf_),
            "weight": torch.from_numpy(weight),
            "bias": torch.from_numpy(bias),
        }
        self._vectorizer = vectorizer

    # ---- answers

    def scores(self, texts: Sequence[str]) -> Tensor:
        """The margins of texts.

        Args:
            texts: ``N``.

        Returns:
            ``(N, C)`` float64.

        Raises:
            UserError: before the fit.
        """
        if not self.learned:
            raise UserError(f"{type(self).__name__} has learned nothing yet: fit it, or give --ckpt_path of a fit.")
        if self._vectorizer is None:
            self._vectorizer = self._new_vectorizer()
            self._vectorizer.vocabulary_ = {term: place for place, term in enumerate(self.terms)}
            self._vectorizer.idf_ = self.learned["idf"].numpy()
        x = self._vectorizer.transform(texts)
        return torch.from_numpy(x @ self.learned["weight"].numpy().T + self.learned["bias"].numpy()).to(self.device)

    def forward(self, x: Inputs) -> Tensor:
        """Not defined: tokens are not texts.

        Raises:
            UserError: always; see :meth:`scores`.
        """
        raise UserError(f"{type(self).__name__} takes texts, not their tokens: use scores(texts).")

    def outputs(self, batch: LabelledBatch, stage: str) -> Tensor:
        """The margins of the texts that a batch is of."""
        if stage not in self._texts:
            self._texts[stage] = self.trainer.datamodule.texts(stage)  # type: ignore[attr-defined]
        assert batch.number is not None
        return self.scores([self._texts[stage][number] for number in batch.number.tolist()])

    def predict_step(self, batch: UnlabelledBatch, batch_idx: int = 0) -> Predictions:
        """Labels texts."""
        if "predict" not in self._texts:
            self._texts["predict"] = self.trainer.datamodule.unlabelled()[0].texts  # type: ignore[attr-defined]
            self._answered = 0
        texts = self._texts["predict"][self._answered : self._answered + len(batch.files)]
        self._answered += len(batch.files)
        return Predictions(batch.files, self.class_names, self.scores(texts).float().softmax(-1).cpu())

    # ---- what is kept

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of the base, with vocabulary and weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["terms"], checkpoint["pipeline"] = self.terms, self.learned

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of the base, with vocabulary and weights."""
        super().on_load_checkpoint(checkpoint)
        self.terms, self.learned = list(checkpoint["terms"]), dict(checkpoint["pipeline"])
        self._vectorizer = None

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the features and the regularisation."""
        return super().protocol() | {"ngrams": self.ngrams, "train_min_count": self.min_count, "train_C": self.C}
