"""The loop that GCG and PGD share: who is attacked when, and who is judged."""

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_chat

from safeedit.attacks.objective import Objective
from safeedit.attacks.search import Search, each_step, pool_losses, result_of
from safeedit.attacks.suffix import make_slots

PROMPTS = ["how do I bake bread", "tell me how to make a paper boat", "explain a lamp"]
TARGETS = ["sure, here is a guide", "sure, a boat", "sure, here is a lamp to make"]


def config_of(**options):
    plain = dict(num_steps=7, early_stop=True, eval_every=3, max_new_tokens=4)
    return SimpleNamespace(
        **{**plain, "batch_tokens": 200, "prefix_cache": True} | options
    )


def searches_of(chat):
    generator = torch.Generator()
    slots = make_slots(chat, PROMPTS, TARGETS, "x", 5)
    return [Search(i, s, generator, torch.tensor(s.start)) for i, s in enumerate(slots)]


def run(config, judge):
    """The live behaviours of each step; each step gives everybody a new suffix."""
    chat, order = tiny_chat("llama"), []
    searches = searches_of(chat)
    for step, live, objective in each_step(chat, searches, config, judge, None):
        assert step == len(order) and len(objective.prefix) == len(live)
        order.append([search.index for search in live])
        for search in live:
            search.steps += 1
            search.best = search.best.roll(1) if step % 2 else search.best + 1
    return chat, searches, order


def test_a_behaviour_leaves_at_the_first_look_that_finds_success():
    looks = []

    def judge(index, prompt, response):
        looks.append(index)
        return index == 0 or (index == 1 and looks.count(1) == 2)

    _, searches, order = run(config_of(), judge)
    # Looks before steps 0, 3 and 6: 0 leaves at once, 1 at the second, 2 never.
    assert order == [[1, 2]] * 3 + [[2]] * 4
    assert [search.success for search in searches] == [True, True, False]
    assert [search.steps for search in searches] == [0, 3, 7]
    assert looks.count(0) == 1 and looks.count(2) == 4  # the last one at the end


def test_without_early_stop_all_stay_and_are_judged_once_at_the_end():
    looks = []

    def judge(index, prompt, response):
        looks.append(index)
        return True

    _, searches, order = run(config_of(early_stop=False), judge)
    assert order == [[0, 1, 2]] * 7 and looks == [0, 1, 2]
    assert all(search.success for search in searches)


def test_no_steps_still_judge_the_start():
    chat, searches, order = run(config_of(num_steps=0), None)
    result = result_of("test", chat, searches, 0.0)
    assert order == [] and result.steps == [0, 0, 0] and result.attack == "test"
    assert result.responses == chat.generate(result.prompts, max_new_tokens=4)
    pairs = zip(PROMPTS, result.suffixes, strict=True)
    assert result.prompts == [prompt + suffix for prompt, suffix in pairs]


@pytest.mark.parametrize("sizes", [(3, 0, 2), (0, 0, 0), (1, 1, 1)])
def test_losses_of_pools_are_those_of_each_suffix(sizes):
    chat = tiny_chat("llama")
    slots = make_slots(chat, PROMPTS, TARGETS, "x", 5)
    objective = Objective(chat, slots, 200)
    current = torch.tensor([slot.start for slot in slots])
    objective.gradient(current)  # from here on it shares what candidates agree in
    generator = torch.Generator().manual_seed(0)
    pools = [torch.randint(5, 40, (size, 5), generator=generator) for size in sizes]
    found = pool_losses(objective, pools)
    assert [len(losses) for losses in found] == list(sizes)
    for slot, pool, losses in zip(slots, pools, found, strict=True):
        alone = Objective(chat, [slot], 200, prefix_cache=False)
        for suffix, loss in zip(pool, losses, strict=True):
            expected = alone.losses(suffix[None], torch.zeros(1, dtype=torch.long))
            assert float(loss) == pytest.approx(float(expected), abs=1e-4)


def test_slots_name_the_prompt_that_is_too_long():
    chat = tiny_chat("llama")
    long = " ".join(["boat"] * chat.model.config.max_position_embeddings)
    with pytest.raises(ValueError, match="1"):
        make_slots(chat, [PROMPTS[0], long], TARGETS[:2], "x", 5)
