from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from artifactsync.journal.growing_set import GrowingSet

WORDS = st.lists(st.text("abcdef", max_size=2), max_size=5)


@given(start=WORDS, growth=st.lists(st.tuples(st.integers(0, 10), WORDS), max_size=10))
def test_it_is_a_set_whichever_of_its_states_it_is_made_from(
    start: list[str], growth: list[tuple[int, list[str]]]
) -> None:
    sets, models = [GrowingSet(start)], [set(start)]
    for choice, more in growth:
        base = choice % len(sets)
        sets.append(sets[base].added(more))
        models.append(models[base] | set(more))
    for grown, model in zip(sets, models, strict=True):
        assert grown == model
        assert len(grown) == len(model)
        assert set(grown) == model
        assert all(word in grown for word in model)
        assert "zz" not in grown
        assert grown & {"a", "zz"} == model & {"a"}
        assert grown | {"zz"} == model | {"zz"}
        assert grown - {"a"} == model - {"a"}
