"""Meta-Baseline: the loss of each phase, and what passes from one to the other."""

import pytest
import torch
import torch.nn.functional as F

from contract import episode
from metatransfer import Conv4, EpisodicDataModule, Glyphs, MetaBaselineModule, Processing, ProtoNetModule, UserError


def module(**arguments):
    return MetaBaselineModule(Conv4(hidden_channels=4), **{"train_classes": 9} | arguments)


def batch():
    found = episode()._replace(classes=torch.tensor([[7, 0, 3], [2, 5, 8]]))
    return found.map(lambda t: t.double() if t.is_floating_point() else t)


def test_first_the_samples_train_a_classifier_of_all_classes():
    made, tasks = module().double().train(), batch()
    x = torch.cat([tasks.support_x, tasks.query_x], 1).flatten(0, 1)
    y = torch.cat([tasks.support_y, tasks.query_y], 1)
    classes = torch.stack([own[labels] for own, labels in zip(tasks.classes, y, strict=True)]).flatten()
    expected = F.cross_entropy(made.classifier(made.backbone(x)), classes)
    loss, outputs = made.training_loss(tasks)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert made.scale.grad == 0
    assert made.classifier.linear.weight.grad.abs().sum() > 0
    assert outputs.shape == (2, 12, 3)


def test_then_it_is_a_prototypical_network_on_cosines():
    made, tasks = module(pretrain_epochs=0, scale=4.0).double().train(), batch()
    twin = ProtoNetModule(made.backbone, "cosine", 4.0).double().train()
    loss, outputs = made.training_loss(tasks)
    expected, own = twin.training_loss(tasks)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(outputs, own)
    loss.backward()
    assert made.scale.grad != 0
    assert made.classifier.linear.weight.grad.eq(0).all()


@pytest.mark.parametrize(("rotations", "classes"), [("none", 1552), ("per_class", 1552), ("classes", 4 * 1552)])
def test_the_number_of_classes_follows_the_data(rotations, classes):
    data = EpisodicDataModule(Glyphs(), processing=Processing(rotations=rotations))
    assert data.info().train_classes == classes


def test_wrong_arguments_and_episodes():
    with pytest.raises(UserError, match="needs train_classes"):
        module(train_classes=None)
    with pytest.raises(UserError, match="pretrain_epochs"):
        module(pretrain_epochs=-1)
    with pytest.raises(UserError, match="carry none"):
        module().training_loss(episode()._replace(classes=None))
    with pytest.raises(UserError, match="has the class 8, but MetaBaselineModule was built with train_classes=8"):
        module(train_classes=8).double().training_loss(batch())
