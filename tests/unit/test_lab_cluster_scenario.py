"""Stories of harm to a cluster: what a seed names is always the same, and every act is told by some story."""

from __future__ import annotations

import json

import pytest

from jumpvpn.lab.cluster.scenario import ACTS, FIXED, Step, random_scenario
from jumpvpn.policy.model import load_policy


def test_a_seed_names_one_story_and_others_name_others() -> None:
    stories = [random_scenario(seed) for seed in range(200)]
    assert stories == [random_scenario(seed) for seed in range(200)]
    assert len({story.steps for story in stories}) == 200
    assert all(story.steps[-1].act == "settle" and not story.ends for story in stories)
    assert json.loads(json.dumps(stories[3].document()))["seed"] == 3


def test_every_act_is_in_a_fixed_story_and_most_in_random_ones() -> None:
    fixed = {step.act for story in FIXED for step in story.steps}
    chance = {step.act for seed in range(100) for step in random_scenario(seed).steps}
    assert fixed | chance == set(ACTS)
    assert chance >= set(ACTS) - {"roll"}
    assert len({story.name for story in FIXED}) == len(FIXED)


def test_a_story_says_what_its_lab_needs() -> None:
    by_name = {story.name: story for story in FIXED}
    assert by_name["clocks_jump"].liars == ("gw1", "gw2")
    assert by_name["disk_full"].small_disks == ("gw1", "gw2")
    assert by_name["slow_store"].slow_store
    plain = by_name["owner_killed"]
    assert (plain.liars, plain.small_disks, plain.slow_store) == ((), (), False)


def test_every_policy_of_a_story_is_valid() -> None:
    import tomllib

    for policy in {story.policy for story in FIXED}:
        assert load_policy(tomllib.loads(policy)["policy"])


def test_a_step_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no act"):
        Step("explode", "gw1")
    with pytest.raises(ValueError, match="has a target"):
        Step("kill_gateway")
    with pytest.raises(ValueError, match="has no target"):
        Step("store_down", "etcd1")
    assert str(Step("cut_store", "owner", 3.0, way="up")) == "cut_store owner up for 3 s"
