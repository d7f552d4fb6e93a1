"""The vendor's tables: what is taken, what is refused, and that every refusal names its row."""

from __future__ import annotations

import msgspec
import pytest

from rkfleet.errors import Invalid
from toolkit import platforms
from toolkit.platforms import Request, check

GOOD = Request(soc="rk3588", dtype="w8a8", release="1.2.3")


def refusal(**changes: object) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        check(msgspec.structs.replace(GOOD, **changes))
    return {cause.field: cause.message for cause in caught.value.causes}


@pytest.mark.parametrize(
    ("soc", "release", "dtypes"),
    [
        ("rk3588", "1.1.0", "w8a8 w8a8_g128 w8a8_g256 w8a8_g512"),
        ("rk3576", "1.3.0", "w8a8 w4a16 w4a16_g32 w4a16_g64 w4a16_g128"),
        ("rk3562", "1.1.4", ""),
        ("rk3562", "1.2.0", "w8a8 w4a16_g32 w4a16_g64 w4a16_g128 w4a8_g32"),
        ("rv1126b", "1.2.0", ""),
        ("rv1126b", "1.2.2", "w8a8 w4a16 w4a16_g32 w4a16_g64 w4a16_g128"),
    ],
)
def test_a_chip_has_the_types_of_its_row(soc: str, release: str, dtypes: str) -> None:
    assert platforms.dtypes_of(soc, release) == tuple(dtypes.split())


@pytest.mark.parametrize(
    ("changes", "field", "row"),
    [
        ({"dtype": "w4a16"}, "dtype", "row RK3588 of table quantized_dtype (release 1.2.3)"),
        ({"dtype": "w3a3"}, "dtype", "no row of table quantized_dtype"),
        ({"soc": "rk3399"}, "soc", "no row in table quantized_dtype"),
        ({"soc": "rk3562", "release": "1.1.0"}, "soc", "row RK3562 of table quantized_dtype begins with release 1.2.0"),
        ({"release": "1.0.1"}, "release", "table releases"),
        ({"algorithm": "grq"}, "algorithm", "row w8a8* of table quantized_algorithm"),
        (
            {"soc": "rk3576", "dtype": "w4a16", "algorithm": "gdq", "release": "1.3.0"},
            "algorithm",
            "row w4a16* of table quantized_algorithm",
        ),
        ({"soc": "rk3576", "dtype": "w4a16", "algorithm": "grq_r65"}, "algorithm", "row w4a16*"),
        ({"soc": "rk3576", "dtype": "w4a16", "algorithm": "grq", "has_gpu": False}, "algorithm", "needs a GPU"),
        ({"algorithm": "normal_r8", "has_adapter": True}, "algorithm", "only without another one"),
        ({"algorithm": "best"}, "algorithm", "row w8a8* of table quantized_algorithm"),
        ({"npu_cores": 4}, "npuCores", "row RK3588 of table num_npu_core, which has 1, 2, 3"),
        ({"max_context": 4097}, "maxContext", "row max_context of table build"),
        ({"max_context": 32768}, "maxContext", "row max_context of table build"),
        ({"max_context": 4096, "release": "1.1.4"}, "maxContext", "begins with release 1.2.0"),
        ({"hybrid_rate": 1.0}, "hybridRate", "row hybrid_rate of table build"),
        ({"hybrid_rate": float("nan")}, "hybridRate", "row hybrid_rate of table build"),
        ({"optimization_level": 2}, "optimizationLevel", "row optimization_level of table build"),
        ({"source": "gguf", "tensor_types": ("F32", "Q4_1")}, "source", "row tensor types of table load_gguf, which has Q4_0, F16"),
        ({"gptq": (4, 128)}, "dtype", "row GPTQ of table load_huggingface"),
        ({"gptq": (3, 128)}, "source", "row GPTQ of table load_huggingface"),
        ({"python": "3.13"}, "python", "row 1.2.3 and 1.3.0 of table python"),
        ({"dtype": "w8a8_g128", "widths": {"blk.0.attn_q": 576}}, "dtype", "576 wide, which is no multiple of the 128"),
    ],
)
def test_what_is_refused_names_its_row(changes: dict[str, object], field: str, row: str) -> None:
    assert row in refusal(**changes)[field]


def test_every_refused_argument_is_told_at_once() -> None:
    told = refusal(dtype="w4a16", max_context=33, hybrid_rate=-1.0, python="3.7")
    assert sorted(told) == ["dtype", "hybridRate", "maxContext", "python"]


def test_what_the_guides_show_is_taken() -> None:
    for soc, dtype, algorithm, release in (
        ("rk3588", "w8a8", "normal", "1.1.0"),
        ("RK3576", "w4a16_g128", "grq", "1.3.0"),
        ("rk3576", "w4a16", "gdq_r8", "1.2.3"),
        ("rk3562", "w4a8_g32", "normal", "1.2.0"),
        ("rk3576", "w4a16_g64", "grq_r64", "1.2.1"),
    ):
        check(Request(soc=soc, dtype=dtype, algorithm=algorithm, release=release))
    check(msgspec.structs.replace(GOOD, dtype="w8a8_g128", gptq=(8, 128), npu_cores=3, max_context=16384, hybrid_rate=0.5, python="3.11"))
    check(msgspec.structs.replace(GOOD, source="gguf", tensor_types=("F32", "F16", "Q4_0")))
