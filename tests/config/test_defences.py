"""Defences: how they are written and named, what they share, what is refused, and configs from before them."""

import re

import pytest

from tvaccine_core.config import (
    AlignmentMethod,
    Defence,
    LabConfig,
    SFTConfig,
    TVaccineConfig,
    VaccineConfig,
    parse_config,
    parse_defence,
)
from tvaccine_core.errors import ConfigError
from tvaccine_core.methods import defence_of, settings_of, title_of, with_defences


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
    ("spec", "name", "title", "alignment"),
    [
        ("tvaccine rho=3", "tvaccine-rho-3", "T-Vaccine (rho 3)", TVaccineConfig(rho=3)),
        ("tvaccine rho = 3.0", "tvaccine-rho-3", "T-Vaccine (rho 3)", TVaccineConfig(rho=3)),
        ("vaccine rho=0.5", "vaccine-rho-0_5", "Vaccine (rho 0.5)", VaccineConfig(rho=0.5)),
        ("vaccine rho=1e+1", "vaccine-rho-10", "Vaccine (rho 10)", VaccineConfig(rho=10)),
        (
            "identity + tvaccine num_layers=2 rho=3",
            "tvaccine-rho-3-num_layers-2+identity",
            "T-Vaccine (rho 3, num layers 2) + Identity",
            TVaccineConfig(rho=3, num_layers=2),
        ),
        (
            "tvaccine layer_choice=top_k",
            "tvaccine-layer_choice-top_k",
            "T-Vaccine (layer choice top_k)",
            TVaccineConfig(layer_choice="top_k"),
        ),
    ],
)
def test_settings_are_written_behind_their_method_and_stand_in_the_name(
    spec: str, name: str, title: str, alignment: AlignmentMethod
) -> None:
    defence = parse_defence(spec)
    assert (defence.name, title_of(defence), defence.alignment) == (name, title, alignment)
    assert config_of(spec).defences == (defence,)
    assert parse_defence(defence.short) == defence
    assert LabConfig.from_yaml(config_of("sft", spec).to_yaml()).defences[1] == defence


def test_a_name_that_says_other_settings_than_there_are_is_a_name_of_its_own() -> None:
    for name in ("tvaccine-rho-3", "tvaccine-rho-10", "tvaccine-rho-1-x", "vaccine-rho-1", "tvaccine-rho-1+identity"):
        defence = Defence(name=name, alignment=TVaccineConfig(rho=1))
        assert (defence.short, title_of(defence)) == ("", name)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("tvaccine roh=3", "T-Vaccine|tvaccine.* has no setting 'roh'.*Did you mean rho"),
        ("tvaccine name=sft", "no setting 'name'"),
        ("sft rho=3", "no setting 'rho'.*It has none"),
        ("tvaccine rho", "'rho'.*rho=3"),
        ("tvaccine =3", "no method 'tvaccine=3'"),
        ("tvaccine rho=", "rho: .*number"),
        ("tvaccine rho=x", "rho: .*number"),
        ("tvaccine rho=99", "rho: .*less than or equal to 50"),
        ("tvaccine rho=1 rho=2", "rho twice"),
        ("tvaccine sft", "'sft'"),
        ("tvaccine rho=3+vaccine rho=1", "two methods of the alignment stage"),
        (
            "tvaccine rescore_every=100 resample_every=10 probe_batch_size=8 num_layers=2 rho=3",
            "name.*too long.*fewer settings",
        ),
    ],
)
def test_wrong_settings_in_short_are_named(spec: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_defence(spec)
    assert re.search(words, f"{caught.value} {caught.value.remedy}")
    with pytest.raises(ConfigError, match=r"defences\.0"):
        config_of(spec)


def test_settings_in_short_change_those_that_the_config_has() -> None:
    config = config_of({"alignment": {"name": "tvaccine", "num_layers": 2}})
    chosen = with_defences(config, ["tvaccine", "tvaccine rho=3", "tvaccine rho=3+identity"])
    assert [title_of(defence) for defence in chosen.defences] == [
        "T-Vaccine",
        "T-Vaccine (rho 3)",
        "T-Vaccine (rho 3) + Identity",
    ]
    assert chosen.defences[1].alignment == TVaccineConfig(num_layers=2, rho=3)
    assert len(chosen.alignments()) == 2
    assert chosen.defence("tvaccine rho=3") is chosen.defence("tvaccine-rho-3") is chosen.defences[1]
    with pytest.raises(ConfigError, match="are the same"):
        with_defences(config, ["tvaccine", "tvaccine rho=1"])


@pytest.mark.parametrize("others_first", [True, False])
def test_a_method_s_settings_are_those_of_the_defence_called_by_it(others_first: bool) -> None:
    plain = {"alignment": {"name": "tvaccine", "rho": 2}}
    defences = [{"name": "strong", "alignment": {"name": "tvaccine", "rho": 5}}, "tvaccine rho=3", plain]
    config = config_of(*(defences if others_first else reversed(defences)))
    assert settings_of(config, "tvaccine") == TVaccineConfig(rho=2)


@pytest.mark.parametrize(
    ("defences", "words"),
    [
        (["sft", "sft"], "two defences are called sft"),
        ([{"name": "twin"}, "sft"], "twin and sft are the same"),
        (["sft+vaccine"], "two methods of the alignment stage"),
        (["magic"], "no method 'magic'"),
        (["sft+"], "no method ''"),
        ([{"name": "a/b"}], "letters, digits"),
        ([{"name": "x" * 65}], "letters, digits"),
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
