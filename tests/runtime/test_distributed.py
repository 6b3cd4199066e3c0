import pytest
from tests.train.two_ranks import on_ranks

from dreamllm.errors import ConfigError, MissingExtraError
from dreamllm.runtime.distributed import ALONE, Ranks, joined, ranks_of, restarts_will_hang


def test_a_process_is_alone_unless_a_launcher_says_otherwise() -> None:
    assert ranks_of({}) == ranks_of({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}) == ALONE
    assert (ALONE.is_alone, ALONE.is_main) == (True, True)

    last = ranks_of({"WORLD_SIZE": "16", "RANK": "15", "LOCAL_RANK": "7"})

    assert last == Ranks(rank=15, size=16, local_rank=7)
    assert (last.is_alone, last.is_main) == (False, False)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "many", "RANK": "0", "LOCAL_RANK": "0"},
    ],
)
def test_an_environment_that_cannot_be_meant_is_an_error(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="expected 0 <= RANK < WORLD_SIZE and a LOCAL_RANK; start with"):
        ranks_of(environment)


def test_a_launcher_that_starts_ranks_again_with_an_old_store_is_known() -> None:
    torchrun = {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}

    assert restarts_will_hang(torchrun)
    assert not restarts_will_hang({**torchrun, "TORCHELASTIC_MAX_RESTARTS": "0"})
    assert not restarts_will_hang({**torchrun, "TORCHELASTIC_USE_AGENT_STORE": "False"})
    assert not restarts_will_hang({})


def test_one_process_agrees_with_itself_without_a_group() -> None:
    with joined(ALONE):
        assert ALONE.sum([1.0, 2.0]) == [1.0, 2.0]
        assert ALONE.any(flag=True)
        assert ALONE.gather("x") == ["x"]
        assert ALONE.broadcast({"a": 1}) == {"a": 1}
        ALONE.wait()
        with ALONE.agreed():
            pass
        with pytest.raises(ConfigError, match="mine"), ALONE.agreed():
            raise ConfigError("mine")


def agree() -> dict[str, object]:
    ranks = ranks_of()
    with joined(ranks), joined(ranks):
        return {
            "sum": ranks.sum([1e15 + ranks.rank, 0.1]),
            "max": ranks.max([ranks.rank, -ranks.rank]),
            "any": (ranks.any(flag=ranks.rank == 1), ranks.any(flag=False)),
            "gather": ranks.gather(f"rank {ranks.rank}"),
            "broadcast": ranks.broadcast(f"rank {ranks.rank}"),
        }


@pytest.mark.slow
def test_ranks_agree() -> None:
    first, second = on_ranks(2, agree)

    assert first == second == {
        "sum": [2e15 + 1, 0.2],
        "max": [1.0, 0.0],
        "any": (True, False),
        "gather": ["rank 0", "rank 1"],
        "broadcast": "rank 0",
    }  # fmt: skip


def fail_on(rank: int) -> list[str]:
    """What is raised where one rank fails, where both do, and where none does."""
    ranks, told = ranks_of(), []
    with joined(ranks):
        for failing in ([rank], [0, 1], []):
            try:
                with ranks.agreed():
                    if ranks.rank in failing:
                        raise MissingExtraError(f"rank {ranks.rank} lacks something")
                told.append("nothing")
            except MissingExtraError as error:
                told.append(str(error))
    return told


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_is_raised_on_all(rank: int) -> None:
    expected = [f"rank {rank} lacks something", "rank 0 lacks something", "nothing"]

    assert on_ranks(2, fail_on, rank) == [expected, expected]
