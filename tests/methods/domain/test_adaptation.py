"""The arguments that all adaptation methods share."""

import pytest
from domain_toys import CLASSES, clouds, module, trainer

from metatransfer import AdaBNModule, Adaptation, ADDAModule, DANNModule, ImportanceWeightedModule, Ramp, UserError
from metatransfer.metrics.validators import Entropy
from metatransfer.nn import MLP


def test_they_come_back_from_a_checkpoint(tmp_path):
    given = Adaptation("domain_specific", Entropy(source_floor=0.5))
    method = DANNModule(MLP((3,), (8,), norm=True), CLASSES, adaptation=given, ramp=Ramp(0.3, 5.0))
    running = trainer(max_epochs=1)
    running.fit(method, datamodule=clouds())
    running.save_checkpoint(tmp_path / "last.ckpt")
    again = DANNModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.protocol() == method.protocol()
    assert again.protocol()["normalization"] == "domain_specific"
    assert again.validator.source_floor == 0.5


@pytest.mark.parametrize(
    ("kind", "own"), [(AdaBNModule, "adabn"), (ADDAModule, "separate"), (ImportanceWeightedModule, "joint")]
)
def test_a_method_with_one_normalization_takes_no_other(kind, own):
    assert module(kind).normalization == own
    with pytest.raises(UserError, match=f"normalization must be one of {own}, but is 'domain_specific'"):
        module(kind, normalization="domain_specific")
