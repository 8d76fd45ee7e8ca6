from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from worldkv.config import RunConfig, load
from worldkv.errors import ConfigError
from worldkv.models.rooms.layout import UNTRAINED_SEEDS

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "default_config.yaml"
DEVICE, HOST = "{name: device, capacity_mib: 8}", "{name: host, capacity_mib: 9}"
DISK, DURABLE = "{name: disk, capacity_mib: 10, folder: d}", "{name: durable, capacity_mib: 11, url: 's3://b/w'}"
CHECKED_IN = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", CHECKED_IN, ids=lambda path: path.name)
def test_every_checked_in_configuration_is_accepted(path):
    assert load(path).policies


def test_the_defaults_are_those_of_the_golden_file():
    assert yaml.safe_load(RunConfig().to_yaml()) == yaml.safe_load(GOLDEN.read_text()), (
        f"a default changed; if that is meant, write the new ones: worldkv rollout --dry-run > {GOLDEN.name}"
    )


def test_without_a_file_the_defaults_hold():
    assert load(None) == RunConfig()


def test_an_empty_file_means_the_defaults(write):
    assert load(write("# nothing yet\n")) == RunConfig()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["trajectory.kind=notation", "trajectory.notation=R_L90_96", "policies=[worldkv/codec=int8]"],
        ["trajectory.kind=files", "trajectory.folder=some/where", "model.weights=w", "sampling.noise_shift=2.5"],
    ],
)
def test_a_resolved_configuration_reads_back_as_itself(write, overrides):
    config = load(None, overrides)
    assert load(write(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wrolds: {count: 2}", ["wrolds: unknown key", "worlds, trajectory, policies"]),
        ("worlds: {cuont: 2}", [r"worlds\.cuont: unknown key", "allowed here are count, first_seed$"]),
        ("model: {size: 1}", [r"model\.size: unknown key", "name, weights, device"]),
        ("trajectory: {pace: 1}", [r"trajectory\.pace: unknown key", "turn_degrees_per_frame"]),
        ("memory: {device_capacity_bytes: 1}", ["unknown key", "tiers, shares"]),
        (
            "memory: {tiers: [{name: host, capacity_mib: 9, nmae: 1}]}",
            [r"memory\.tiers\.0\.nmae: unknown key", "name, capacity_mib"],
        ),
        ("sampling: {steps: 4}", [r"sampling\.steps: unknown key", "denoise_steps"]),
        ("output: {path: x}", [r"output\.path: unknown key", "folder, video_fps, lossless"]),
    ],
)
def test_an_unknown_key_is_refused_and_the_allowed_ones_are_named(write, text, words):
    path = write(text)
    with pytest.raises(ConfigError) as fault:
        load(path)
    assert str(path) in str(fault.value)
    for word in words:
        assert fault.match(word)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("worlds.count=0", r"worlds\.count = 0: must be greater than or equal to 1"),
        ("worlds.count=true", r"worlds\.count = True: must be a valid integer"),
        ("worlds.count='3'", r"worlds\.count = '3': must be a valid integer"),
        ("worlds.count=2.0", r"worlds\.count = 2\.0: must be a valid integer"),
        ("worlds.count=", r"worlds\.count = None: must be a valid integer"),
        ("worlds.first_seed=500000000", r"first_seed = 500000000: must be less than 500000000"),
        ("trajectory.video_frames=5", r"video_frames = 5: must be greater than or equal to 6"),
        ("trajectory.kind=orbit", r"trajectory\.kind = 'orbit': must be 'back', 'roam', 'wander'"),
        ("trajectory.turn_degrees_per_frame=31", r"= 31: must be less than or equal to 30"),
        ("trajectory.distance_per_frame=0", r"= 0: must be greater than 0"),
        ("sampling.noise_shift=.inf", r"noise_shift = inf: must be a finite number"),
        ("sampling.noise_shift=.nan", r"noise_shift = nan: must be"),
        ("sampling.denoise_steps=65", r"= 65: must be less than or equal to 64"),
        ("model.device=gpu", r"model\.device = 'gpu': must be 'auto', 'cpu' or 'cuda'"),
        ("history=mine", r"history = 'mine': must be 'truth' or 'own'"),
        ("output.lossless=perhaps", r"output\.lossless = 'perhaps': must be a valid boolean"),
        ("worlds=3", r"worlds = 3: must be a section with keys count, first_seed"),
        ("memory.tiers=[{name: host}]", r"memory\.tiers\.0\.capacity_mib: missing; keys here are name, capacity_mib"),
        ("memory.tiers=[]", r"memory: tiers = \[\]: list at least one of device, host, node, disk, durable"),
        (
            "memory.tiers=[{name: host, capacity_mib: 0}]",
            r"tiers\.0\.capacity_mib = 0: must be greater than or equal to 1",
        ),
        (f"memory.tiers=[{HOST}, {DEVICE}]", r"tiers = \[host, device\]: list .* each once and in this order"),
        (f"memory.tiers=[{HOST}, {HOST}]", r"tiers = \[host, host\]: list .* each once and in this order"),
        ("memory.tiers=[{name: disk, capacity_mib: 9}]", r"memory\.tiers\.0: name: disk and folder go together"),
        (
            "memory.tiers=[{name: nvme, capacity_mib: 9}]",
            r"tiers\.0\.name = 'nvme': must be 'device', 'host', 'node', 'disk' or 'durable'",
        ),
        (
            "memory.tiers=[{name: host, capacity_mib: 9, high_watermark_ratio: 0.5, low_watermark_ratio: 0.6}]",
            r"memory\.tiers\.0: low_watermark_ratio = 0\.6 is above high_watermark_ratio = 0\.5: lower it",
        ),
        (
            "memory.tiers=[{name: host, capacity_mib: 9, detail: [zip]}]",
            r"memory\.tiers\.0\.detail: detail 'zip': must be one of .*int4",
        ),
        (
            "memory.tiers=[{name: host, capacity_mib: 9, detail: [int4/some]}]",
            "detail 'int4/some': expected a codec alone, or with /keep=0.5",
        ),
        (
            "memory.shares=[{tenant: default, tier: disk}]",
            r"memory: shares\.0\.tier = 'disk': must be one of the tiers, device, host",
        ),
        (
            "memory.shares=[{tenant: defualt, tier: host}]",
            r"memory: shares\.0\.tenant = 'defualt': unknown in tier host, which holds chunks of tenant = 'default' "
            "alone; name that one, or leave the share out",
        ),
        ("memory.tenant=a b", r"memory\.tenant = 'a b': must match pattern"),
        ("memory.tenant=", r"memory\.tenant = None: must be a valid string"),
        (
            "memory.shares=[{tenant: a, tier: host, reserved_mib: 9, limit_mib: 8}]",
            r"memory\.shares\.0: limit_mib = 8: must be at least reserved_mib = 9; raise it or reserve less",
        ),
        (
            "memory.shares=[{tenant: default, tier: host}, {tenant: default, tier: host}]",
            "memory: shares: each tenant once per tier",
        ),
        (
            "memory.shares=[{tenant: default, tier: host, reserved_mib: 5000}]",
            "shares: 5000 MiB of tier host are reserved, but its capacity_mib = 4096: reserve less or raise it",
        ),
        (
            f"memory.tiers=[{DURABLE}, {DISK}]",
            r"tiers = \[durable, disk\]: list .* each once and in this order",
        ),
        ("memory.tiers=[{name: durable, capacity_mib: 9}]", r"memory\.tiers\.0: name: durable and url go together"),
        (
            "memory.tiers=[{name: host, capacity_mib: 9, url: x}]",
            r"memory\.tiers\.0: name: durable and url go together",
        ),
        (
            "memory.tiers=[{name: durable, capacity_mib: 9, url: ''}]",
            r"memory\.tiers\.0\.url = '': must have at least 1 character",
        ),
        (
            "memory.tiers=[{name: host, capacity_mib: 9, keep: true}]",
            r"memory\.tiers\.0: keep = True: only tiers disk and durable have it; leave it out",
        ),
        ("policies=7", r"policies = 7: must be a valid list"),
        ("policies=[]", "policies: at least one policy is needed"),
        ("policies=[full, full]", "policies: .*each only once"),
        ("policies=[full, best]", "policies: policy 'best': 'best' is not one of full, sliding, worldkv"),
        ("policies=worldkv/codec=int2", "policies: policy 'worldkv/codec=int2': .*must be one of .*int4"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_key_value_and_what_is_allowed(override, words):
    with pytest.raises(ConfigError, match=words):
        load(None, [override])


def test_a_message_counts_the_faults_it_does_not_tell():
    with pytest.raises(ConfigError, match=r"\(and 1 more\)$"):
        load(None, ["worlds.count=0", "batch_sessions=0"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["trajectory.kind=notation"],
        ["trajectory.kind=files"],
        ["trajectory.notation=R90_24"],
        ["trajectory.folder=x"],
        ["trajectory.kind=notation", "trajectory.notation=R90_24", "trajectory.folder=x"],
    ],
)
def test_kind_notation_and_kind_files_go_with_their_field_and_no_other(overrides):
    with pytest.raises(ConfigError, match=r"trajectory: kind: (notation|files) and (notation|folder) go together"):
        load(None, overrides)


@pytest.mark.parametrize(
    "text", ["policies=sliding,worldkv", "policies=[sliding, worldkv]", "policies=sliding, worldkv"]
)
def test_policies_may_be_a_list_or_separated_by_commas(text):
    assert load(None, [text]).policies == ("sliding", "worldkv")


def test_overrides_change_one_key_each_and_the_last_one_wins(write):
    path = write("worlds: {count: 5, first_seed: 7}\n")
    config = load(path, ["worlds.count=2", "output.folder=runs/x", "worlds.count=4", "history=own"])
    assert (config.worlds.count, config.worlds.first_seed) == (4, 7)
    assert (config.output.folder, config.history) == (Path("runs/x"), "own")


@pytest.mark.parametrize("override", ["worlds.count", "=3", "worlds"])
def test_an_override_that_is_no_key_and_value_is_refused_with_an_example(override):
    with pytest.raises(ConfigError, match=r"--set .*: expected key=value, such as worlds\.count=2"):
        load(None, [override])


def test_an_override_below_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"--set history\.x=1: history is not a section"):
        load(None, ["history=own", "history.x=1"])


def test_an_override_reaches_an_entry_of_a_list():
    tiers = "memory.tiers=[{name: device, capacity_mib: 1}, {name: host, capacity_mib: 2}]"
    config = load(None, [tiers, "memory.tiers.1.capacity_mib=3", "memory.tiers.0.eviction=pose"])
    assert [tier.capacity_mib for tier in config.memory.tiers] == [1, 3]
    assert [tier.eviction for tier in config.memory.tiers] == ["pose", "lru"]


@pytest.mark.parametrize("entry", ["2", "x", "-1"])
def test_an_override_of_an_entry_that_is_not_there_is_refused(entry):
    tiers = "memory.tiers=[{name: device, capacity_mib: 1}, {name: host, capacity_mib: 2}]"
    with pytest.raises(ConfigError, match=f"tiers is not a section, nor a list with an entry {entry}"):
        load(None, [tiers, f"memory.tiers.{entry}.capacity_mib=3"])


def test_an_override_that_is_no_yaml_is_refused():
    with pytest.raises(ConfigError, match=r"--set policies=\[: the value is not valid YAML"):
        load(None, ["policies=["])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such configuration file"):
        load(tmp_path / "none.yaml")


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(("text", "words"), [("a: [", "not valid YAML"), ("- a\n", "found list"), ("3\n", "found int")])
def test_a_file_that_is_no_mapping_of_sections_is_refused(write, text, words):
    with pytest.raises(ConfigError, match=words) as fault:
        load(write(text))
    assert "\n" not in str(fault.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "x.yaml")


def test_worlds_that_served_in_training_are_refused():
    last = UNTRAINED_SEEDS - 2
    assert load(None, [f"worlds.first_seed={last}", "worlds.count=2"]).worlds.count == 2
    with pytest.raises(ConfigError, match="served in training"):
        load(None, [f"worlds.first_seed={last}", "worlds.count=3"])


def test_tiers_reach_from_the_device_to_a_durable_store():
    tiers = load(None, [f"memory.tiers=[{DEVICE}, {HOST}, {DISK}, {DURABLE}]"]).memory.tiers
    assert [tier.name for tier in tiers] == ["device", "host", "disk", "durable"]
    assert (tiers[2].folder, tiers[3].url) == (Path("d"), "s3://b/w")


def test_a_durable_tier_keeps_its_chunks_and_a_disk_tier_does_not_unless_told():
    tiers = load(None, [f"memory.tiers=[{DEVICE}, {HOST}, {DISK}, {DURABLE}]"]).memory.tiers
    assert [tier.keeps for tier in tiers] == [False, False, False, True]
    disk, durable = DISK.replace("}", ", keep: true}"), DURABLE.replace("}", ", keep: false}")
    assert [tier.keeps for tier in load(None, [f"memory.tiers=[{disk}, {durable}]"]).memory.tiers] == [True, False]


def test_a_node_tier_stands_behind_the_host_and_may_be_written_through():
    node = "{name: node, capacity_mib: 9, copies: 2, url: 's3://b/w', url_capacity_mib: 8}"
    tier = load(None, [f"memory.tiers=[{DEVICE}, {HOST}, {node}, {DISK}]"]).memory.tiers[2]
    assert (tier.copies, tier.url, tier.url_capacity_mib) == (2, "s3://b/w", 8)
    assert (tier.keeps, tier.outlives_the_process) == (True, True)
    assert load(None, ["memory.tiers=[{name: node, capacity_mib: 9}]"]).memory.tiers[0].copies is None


@pytest.mark.parametrize(
    ("tier", "words"),
    [
        ("{name: node, capacity_mib: 9, url: 's3://b/w'}", "of tier node they go together; give both or neither"),
        ("{name: node, capacity_mib: 9, url_capacity_mib: 2}", "of tier node they go together; give both or neither"),
        ("{name: node, capacity_mib: 9, copies: 0}", "copies = 0: must be greater than or equal to 1"),
        ("{name: node, capacity_mib: 9, folder: d}", "name: disk and folder go together"),
        ("{name: node, capacity_mib: 9, keep: true}", "keep = True: only tiers disk and durable have it"),
        ("{name: host, capacity_mib: 9, copies: 2}", "copies and url_capacity_mib: only tier node has them"),
        ("{name: durable, capacity_mib: 9, url: u, url_capacity_mib: 2}", "only tier node has them; leave them out"),
    ],
)
def test_a_node_tier_that_cannot_be_is_refused(tier, words):
    with pytest.raises(ConfigError, match=words):
        load(None, [f"memory.tiers=[{tier}]"])


def test_a_tier_that_keeps_chunks_may_hold_those_of_other_tenants():
    shares = "memory.shares=[{tenant: a, tier: durable, reserved_mib: 6}, {tenant: b, tier: durable, reserved_mib: 5}]"
    assert len(load(None, [f"memory.tiers=[{DURABLE}]", shares]).memory.shares) == 2
    with pytest.raises(ConfigError, match="shares: 12 MiB of tier durable are reserved, but its capacity_mib = 11"):
        load(None, [f"memory.tiers=[{DURABLE}]", shares.replace("5", "6")])
