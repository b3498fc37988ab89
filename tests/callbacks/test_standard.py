"""The callbacks of every run."""

from metatransfer.callbacks import Figures, Report, standard_callbacks


def test_the_users_own_callback_replaces_the_standard_one():
    kinds = [type(one) for one in standard_callbacks([])]
    assert kinds.count(Report) == 1

    class Mine(Report):
        pass

    assert [type(one) for one in standard_callbacks([Mine(), Figures()])] == [
        kind for kind in kinds if kind not in (Report, Figures)
    ]
