"""Defences: how they are written and named, what they share, what is refused, and configs from before them."""

import pytest

from tvaccine_core.config import Defence, LabConfig, SFTConfig, TVaccineConfig, parse_config, parse_defence
from tvaccine_core.errors import ConfigError
from tvaccine_core.methods import defence_of, title_of, with_defences


def config_of(*defences: object) -> LabConfig:
    return parse_config(LabConfig, {"defences": list(defences)})


@pytest.mark.parametrize(
    ("spec", "name", "title"),
    [
        ("sft", "sft", "SFT"),
        ("tvaccine", "tvaccine", "T-Vaccine"),
        ("all+sft+plain+none", "sft", "SFT"),
        ("identity", "sft+identity", "SFT + Identity"),
        ("identity + tvaccine", "tvaccine+identity", "T-Vaccine + Identity"),
    ],
)
def test_a_defence_is_written_by_its_stages_and_named_by_those_that_are_not_plain(
    spec: str, name: str, title: str
) -> None:
    defence = parse_defence(spec)
    assert (defence.name, defence.spec, title_of(defence)) == (name, name, title)
    assert config_of(spec).defences == (defence,)


@pytest.mark.parametrize(
    ("defences", "words"),
    [
        (["sft", "sft"], "two defences are called sft"),
        ([{"name": "twin"}, "sft"], "twin and sft are the same"),
        (["sft+vaccine"], "two methods of the alignment stage"),
        (["magic"], "no method 'magic'"),
        (["sft+"], "no method ''"),
        ([{"name": "a/b"}], "letters, digits"),
        ([{"name": "x" * 41}], "letters, digits"),
        ([], "at least 1 item"),
        ([{"name": f"d{rho}", "alignment": {"name": "vaccine", "rho": rho}} for rho in range(13)], "at most 12"),
    ],
)
def test_senseless_defences_are_refused_with_the_reason(defences: list[object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of(*defences)


def test_defences_that_are_aligned_alike_share_a_key_and_others_do_not() -> None:
    strong = {"name": "strong", "alignment": {"name": "tvaccine", "rho": 5}}
    config = config_of(
        "sft", "sft+identity", "tvaccine", strong, {**strong, "name": "both", "repair": {"name": "identity"}}
    )
    keys = config.aligned_keys()
    assert keys["sft"] == keys["sft+identity"] == "sft"
    assert keys["tvaccine"] == "tvaccine"
    assert keys["strong"] == keys["both"]
    assert keys["strong"].startswith("tvaccine-")
    assert list(config.alignments()) == ["sft", "tvaccine", keys["strong"]]
    assert config_of("tvaccine", "sft").aligned_keys() == {"tvaccine": "tvaccine", "sft": "sft"}


def test_a_config_from_before_defences_means_what_it_meant() -> None:
    old = "seed: 3\nalignment:\n  methods:\n  - name: sft\n  - {name: tvaccine, rho: 2.0}\n  optimisation: {steps: 7}\n"
    config = LabConfig.from_yaml(old)
    assert config.defences == (Defence(alignment=SFTConfig()), Defence(alignment=TVaccineConfig(rho=2.0)))
    assert [defence.name for defence in config.defences] == ["sft", "tvaccine"]
    assert (config.seed, config.alignment.optimisation.steps) == (3, 7)
    assert LabConfig.from_yaml(config.to_yaml()) == config
    with pytest.raises(ConfigError, match="methods"):
        LabConfig.from_yaml("alignment: {methods: sft}")
    with pytest.raises(ConfigError, match="no such setting"):
        LabConfig.from_yaml("alignment: {methods: []}\ndefences: [sft]")


def test_defences_are_chosen_by_name_or_in_short_and_keep_the_settings_they_have() -> None:
    config = config_of({"name": "strong", "alignment": {"name": "tvaccine", "rho": 5, "perturb_every": 3}}, "sft")
    chosen = with_defences(config, ["vaccine", "strong", "tvaccine+identity"])
    assert [defence.name for defence in chosen.defences] == ["vaccine", "strong", "tvaccine+identity"]
    assert chosen.defences[1] == config.defences[0]
    vaccine = chosen.defences[0].alignment
    assert (vaccine.name, getattr(vaccine, "perturb_every", None)) == ("vaccine", 3)
    assert chosen.defences[2].alignment == config.defences[0].alignment
    with pytest.raises(ConfigError, match="no method 'tar'"):
        defence_of(config, "tar")
    with pytest.raises(ConfigError, match="no defence 'vaccine'") as caught:
        config.defence("vaccine")
    assert "strong, sft" in caught.value.remedy
