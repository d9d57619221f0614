"""Every step holds corrections and keep records, evenly, whatever the batch size and the number of processes."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.training.step_sampler import StepPlan, StepSampler

SIZES = st.tuples(st.integers(1, 40), st.integers(0, 60), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))


def steps_of(corrections, keeps, batch_size, accumulation, processes, *, steps=12, seed=0, grouped=False):
    """For each step the micro-batches of all processes."""
    plan = StepPlan.of(corrections, keeps, batch_size=batch_size, micro_batches=accumulation * processes)
    lengths = [7 + index % 11 for index in range(corrections + keeps)]
    numbers = range(corrections), range(corrections, corrections + keeps)
    samplers = [
        StepSampler(plan, *numbers, lengths, steps=steps, seed=seed, rank=rank, processes=processes, grouped=grouped)
        for rank in range(processes)
    ]
    batches = [list(sampler) for sampler in samplers]
    assert {len(own) for own in batches} == {len(sampler) for sampler in samplers} == {steps * accumulation}
    return plan, [
        [own[step * accumulation + i] for own in batches for i in range(accumulation)] for step in range(steps)
    ]


@given(SIZES, st.booleans())
def test_every_step_holds_both_kinds_and_every_process_has_its_micro_batches(sizes, grouped):
    corrections, keeps, batch_size, *_ = sizes
    plan, steps = steps_of(*sizes, grouped=grouped)
    assert plan.corrections + plan.keeps <= max(2, batch_size * plan.micro_batches)
    for step in steps:
        assert all(step), "no micro-batch is empty"
        chosen = set().union(*step)
        shown = {number for number in chosen if number < corrections}
        # Where one round ends and the next begins within a step, a record may stand in it twice.
        assert plan.corrections / 2 <= len(shown) <= plan.corrections
        assert (len(chosen) - len(shown) > 0) == (keeps > 0)


@given(SIZES)
def test_none_is_shown_twice_before_all_were_shown_once(sizes):
    corrections, keeps, *_ = sizes
    plan, steps = steps_of(*sizes, steps=40)
    if plan.corrections + plan.keeps < plan.micro_batches:
        return  # a record then stands in several micro-batches of a step
    seen = Counter(number for step in steps for batch in step for number in batch)
    kinds = (range(corrections), plan.corrections), (range(corrections, corrections + keeps), plan.keeps)
    for numbers, share in kinds:
        times = [seen[number] for number in numbers] or [0]
        assert max(times) - min(times) <= 1
        assert sum(times) == 40 * share


def test_what_a_step_holds_depends_on_the_seed_and_its_number_alone():
    assert steps_of(20, 30, 4, 2, 2) == steps_of(20, 30, 4, 2, 2)
    assert steps_of(20, 30, 4, 2, 2)[1] == steps_of(20, 30, 4, 2, 2, steps=30)[1][:12]
    assert steps_of(20, 30, 4, 2, 2)[1] != steps_of(20, 30, 4, 2, 2, seed=1)[1]


def test_a_few_corrections_are_in_every_step_beside_many_keep_records():
    plan, steps = steps_of(3, 256, 16, 1, 1)
    assert (plan.corrections, plan.keeps) == (3, 8)
    assert all({0, 1, 2} <= set(step[0]) for step in steps)
    kept = [number for step in steps for number in step[0] if number >= 3]
    assert len(set(kept)) == len(kept), "a fresh sample each time"


def test_one_keep_record_takes_no_more_than_its_place():
    assert StepPlan.of(14, 1, batch_size=16, micro_batches=1) == StepPlan(14, 1, 1)


def test_every_micro_batch_has_a_record_of_its_own_where_there_are_enough():
    assert StepPlan.of(1, 9, batch_size=1, micro_batches=4) == StepPlan(1, 3, 4)
    assert StepPlan.of(1, 9, batch_size=4, micro_batches=2) == StepPlan(1, 4, 2)


def test_a_step_of_one_record_makes_room_for_both_kinds():
    assert StepPlan.of(5, 9, batch_size=1, micro_batches=1) == StepPlan(1, 1, 1)
    assert StepPlan.of(5, 0, batch_size=1, micro_batches=1) == StepPlan(1, 0, 1)
    assert StepPlan.of(5, 0, batch_size=2, micro_batches=1).steps_per_pass(5) == 3
