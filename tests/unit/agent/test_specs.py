"""What an NPU worker is told: library, domain, files by role, and what changes its key."""

from pathlib import PurePosixPath
from typing import Any

import msgspec
import pytest

from agent.planning import specs
from agent.planning.effects import without_effect
from agent.planning.values import Abilities, InstalledLibrary, Start
from agent.workers.base import WorkerSpec
from agent.workers.pipe import Adapter, NpuLoad
from rkfleet.assignment import AssignedFile, AssignedReplica, ServingParameters
from tests.support.assignments import digest_of, replica
from tests.support.board_world import BoardWorld

OLD = InstalledLibrary(version="1.2.3", path="/opt/rkfleet/runtimes/1.2.3/librkllmrt.so", generation="G3")
NEW = InstalledLibrary(version="1.3.0", path="/opt/rkfleet/runtimes/1.3.0/librkllmrt.so", generation="G4")
ABILITIES = Abilities(
    libraries={"llamacpp": (InstalledLibrary(version="2026.10"),), "rkllm": (NEW, OLD)}, cores=8, memory_bytes=16 << 30, serving_url="",
    npu_lock_path="/run/rkfleet/npu.lock", prompt_cache_dir="/data/prompt-cache",
)  # fmt: skip


def npu(name: str = "chat-1", **changes: Any) -> AssignedReplica:
    serving = changes.pop("serving", {})
    return replica(name, runtime="rkllm", dtype="w8a8", memory_bytes=2 << 30, serving=ServingParameters(**serving), **changes)


def file(path: str, role: str, **more: Any) -> AssignedFile:
    return AssignedFile(path=path, digest=digest_of(path), size_bytes=100, role=role, **more)


def world(*replicas: AssignedReplica) -> BoardWorld:
    made = BoardWorld(*replicas, abilities=ABILITIES)
    files = {one.digest: f"/cache/{PurePosixPath(one.path).name}" for each in replicas for one in each.files}
    made.change(files=files, verified={each.uid: "first" for each in replicas})
    return made


def started(made: BoardWorld) -> dict[str, WorkerSpec]:
    return {step.spec.name: step.spec for step in made.plan().steps if isinstance(step, Start)}


def key(one: AssignedReplica, library: InstalledLibrary = NEW) -> str:
    return specs.key_of(one, library, ABILITIES)


def test_the_newest_version_that_meets_both_requirements_runs_the_model() -> None:
    """Two deployments on one board may run two versions side by side."""
    chosen = started(world(npu("a"), npu("b", serving={"runtime_version": "<1.3"}), npu("c", runtime_version="==1.2.3")))
    assert {name: (spec.library, spec.npu.library if spec.npu else "") for name, spec in chosen.items()} == {
        "a": ("1.3.0", NEW.path), "b": ("1.2.3", OLD.path), "c": ("1.2.3", OLD.path),
    }  # fmt: skip


def test_a_version_that_no_library_has_is_said_with_what_there_is() -> None:
    """Both requirements stand in the sentence."""
    made = world(npu(runtime_version=">=1.2", serving={"runtime_version": ">=1.4"}))
    assert made.conditions("uid-chat-1")["Loaded"] == ("False", "RuntimeMissing")
    assert made.plan().served[0].waiting == (
        "variant cpu-q4 needs runtime rkllm (requires.runtimeVersion >=1.2 and serving.runtimeVersion >=1.4), this board has"
        " llamacpp 2026.10, rkllm 1.3.0, rkllm 1.2.3"
    )


def test_another_version_is_another_worker() -> None:
    """What is rolled out is really loaded; the same version again disturbs nobody."""
    made = world(npu())
    made.step()
    made.loaded("uid-chat-1")
    assert started(made) == {}
    made.replicas = (npu(serving={"runtime_version": ">=1.2"}),)
    assert started(made) == {}
    made.replicas = (npu(serving={"runtime_version": "<1.3"}),)
    assert started(made)["chat-1"].library == "1.2.3"


def test_every_file_and_parameter_reaches_the_worker() -> None:
    """Adapters are named by their file; paths are those of the cache."""
    files = (
        file("model.rkllm", "weight"), file("style/polite.rkllm", "adapter", scale_percent=50), file("eyes.rknn", "encoder"),
        file("chat.jinja", "template"), file("config.json", "config"), file("README.md", "doc"),
    )  # fmt: skip
    serving = {
        "context_overflow": "Shift", "keep_tokens": 7, "prompt_cache_bytes": 1 << 30, "embed_flash": True, "cpus": "4-6,0",
        "iommu_domain": 3, "max_output_tokens": 99,
    }  # fmt: skip
    spec = started(world(npu(files=files, serving=serving)))["chat-1"]
    weights = digest_of("model.rkllm").removeprefix("sha256:")
    assert spec.npu == NpuLoad(
        library=NEW.path, generation="G4", library_version="1.3.0", lock_path="/run/rkfleet/npu.lock", base_domain=3, embed_flash=True,
        cpus=(0, 4, 5, 6), shift=True, keep_tokens=7, adapters=(Adapter(name="polite", path="/cache/polite.rkllm", scale=0.5),),
        encoder_path="/cache/eyes.rknn", template_path="/cache/chat.jinja", config_path="/cache/config.json",
        cache_dir=f"/data/prompt-cache/{weights}-1.3.0", cache_bytes=1 << 30,
    )  # fmt: skip
    assert (spec.max_output_tokens, spec.shift, spec.keep_tokens, spec.model_path) == (99, True, 7, "/cache/model.rkllm")


@pytest.mark.parametrize(
    "serving",
    [
        {"context_overflow": "Shift"}, {"prompt_cache_bytes": 1}, {"embed_flash": True}, {"cpus": "4"}, {"iommu_domain": 2},
        {"max_output_tokens": 9}, {"context_tokens": 2048},
    ],
)  # fmt: skip
def test_the_key_of_an_npu_worker_changes_with_what_it_was_told(serving: dict[str, object]) -> None:
    assert key(npu(serving=serving)) != key(npu())


@pytest.mark.parametrize(
    "serving",
    [
        {"load": "OnDemand"},
        {"max_concurrent": 2},
        {"threads": 2},
        {"idle_unload_seconds": 5},
        {"keep_tokens": 5},
        {"runtime_version": ">=1"},
        {"max_queued": 1},
    ],
)
def test_what_a_running_worker_does_not_depend_on_restarts_nothing(serving: dict[str, object]) -> None:
    """Kept tokens count only with a shift; a requirement counts by the version that it chooses."""
    assert key(npu(serving=serving)) == key(npu())


def test_a_changed_adapter_is_a_changed_worker_and_a_changed_note_is_not() -> None:
    """Its bytes, and its weight in the joint inference."""
    weight = file("model.rkllm", "weight")
    plain = npu(files=(weight, file("a.rkllm", "adapter")))
    assert key(npu(files=(weight,))) != key(plain)
    assert key(npu(files=(weight, file("a.rkllm", "adapter", scale_percent=50)))) != key(plain)
    assert key(npu(files=(weight, file("a.rkllm", "adapter"), file("README.md", "doc")))) == key(plain)
    cpu = replica(files=(weight,))
    assert key(cpu) == key(msgspec.structs.replace(cpu, files=(weight, file("a.rkllm", "adapter"))))


def test_models_on_one_npu_have_domains_of_their_own_and_a_newcomer_moves_nobody() -> None:
    """The worker that runs keeps its domain and its process; the user's choice that conflicts is a sentence."""
    made = world(npu("b"))
    assert started(made)["b"].domain == 0
    made.step()
    made.loaded("uid-b")
    before = made.replicas
    made.replicas = (npu("a"), *before, npu("c", serving={"iommu_domain": 0}))
    made.change(verified={"uid-a": "first", "uid-b": "first", "uid-c": "first"})
    chosen = started(made)
    assert {name: spec.domain for name, spec in chosen.items()} == {"a": 1}
    assert made.conditions("uid-c")["Ready"] == ("False", "NoNPUDomain")
    waiting = next(one.waiting for one in made.plan().served if one.replica.name == "c")
    assert waiting == "smollm2 is not loaded: serving.iommuDomain 0 asks for domain 0, and default/b has domain 0"


def test_the_npu_answers_one_request_at_a_time_and_others_wait_in_the_agents_queue() -> None:
    """The library takes one; the rest can be counted, refused and cancelled where they wait."""
    made = world(npu(serving={"max_concurrent": 4}), replica("cpu", serving=ServingParameters(max_concurrent=4)))
    assert {one.replica.name: one.max_concurrent for one in made.plan().served} == {"chat-1": 1, "cpu": 4}


def test_saved_prompts_are_kept_for_what_is_assigned_or_runs_and_for_nothing_else() -> None:
    """By weights and library version."""
    made = world(npu(serving={"prompt_cache_bytes": 1}), npu("other"))
    (name,) = made.plan().caches
    assert name == f"{digest_of('smollm2').removeprefix('sha256:')}-1.3.0"
    made.step()
    made.replicas = ()
    assert made.plan().caches == {name}
    made.gone("uid-chat-1")
    assert made.plan().caches == frozenset()


@pytest.mark.parametrize(
    ("one", "generation", "sentence"),
    [
        (npu(serving={"embed_flash": True, "cpus": "4-7"}), "G4", ""),
        (
            npu(serving={"embed_flash": True, "cpus": "4-7"}), "G1",
            "serving.cpus, serving.embedFlash have no effect with runtime rkllm of generation G1",
        ),
        (npu(serving={"threads": 2}), "G4", "serving.threads (use serving.cpus) has no effect with runtime rkllm of generation G4"),
        (npu(serving={"embed_flash": True}), "", "serving.embedFlash has no effect with a simulated NPU"),
        (
            replica(serving=ServingParameters(cpus="1", iommu_domain=0, prompt_cache_bytes=1)), "",
            "serving.cpus, serving.iommuDomain, serving.promptCache have no effect with runtime llamacpp",
        ),
        (
            replica(files=(file("m", "weight"), file("a", "adapter"))), "",
            "the adapter of the variant has no effect with runtime llamacpp",
        ),
        (
            replica(serving=ServingParameters(keep_tokens=3)), "",
            "serving.keepTokens without contextOverflow Shift has no effect with runtime llamacpp",
        ),
        (replica(serving=ServingParameters(keep_tokens=3, context_overflow="Shift")), "", ""),
    ],
)  # fmt: skip
def test_a_field_without_effect_is_said(one: AssignedReplica, generation: str, sentence: str) -> None:
    assert without_effect(one, generation) == sentence


def test_a_loaded_replica_tells_the_fields_that_have_no_effect() -> None:
    """It serves all the same."""
    made = BoardWorld(replica(serving=ServingParameters(embed_flash=True)))
    made.serve("uid-chat-1")
    (state,) = made.plan().replicas
    loaded = next(one for one in state.conditions if one.type == "Loaded")
    assert (loaded.status, loaded.message) == (
        "True",
        "serving.embedFlash has no effect with runtime llamacpp. Try: rkfleet describe replica chat-1 -n default",
    )
    assert made.conditions("uid-chat-1")["Ready"] == ("True", "Serving")
