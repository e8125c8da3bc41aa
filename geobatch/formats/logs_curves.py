"""What well-log curves are called and measured in: the open table of mnemonics, spellings of units and their factors.

Mnemonics follow the LAS 2.0 standard (CWLS) and the FORCE 2020 wells; ranges are those beyond which a log analyst looks
twice, not limits of physics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CurveType:
    """A kind of measurement.

    Attributes:
        about: What it is.
        unit: The unit its values are converted to.
        low: Values below are implausible.
        high: Values above are implausible.
        aliases: Other mnemonics, best first, upper case.
    """

    about: str
    unit: str
    low: float
    high: float
    aliases: tuple[str, ...] = ()


CURVES: dict[str, CurveType] = {
    "GR": CurveType(
        "gamma ray", "gAPI", 0, 500, ("GRC", "GAMMA", "GAM", "GRGC", "ECGR", "GRD", "GRS", "GR_EDTC", "HGR")
    ),
    "SGR": CurveType("spectral gamma ray", "gAPI", 0, 500, ("GRSL", "HSGR")),
    "CALI": CurveType("caliper", "in", 3, 40, ("CAL", "CALX", "HCAL", "CALD", "CALS", "CALI1", "C1", "LCAL")),
    "BS": CurveType("bit size", "in", 3, 40, ("BIT", "BITSIZE")),
    "RHOB": CurveType("bulk density", "g/cm3", 1.0, 3.3, ("DEN", "RHOZ", "ZDEN", "ZDNC", "RHO", "DENS", "BDEN")),
    "DRHO": CurveType("density correction", "g/cm3", -0.8, 0.8, ("ZCOR", "HDRA", "DCOR", "DENC")),
    "NPHI": CurveType(
        "neutron porosity", "v/v", -0.15, 1.0, ("TNPH", "NPOR", "NPHIL", "NPHILS", "CNC", "CN", "PHIN", "NEU")
    ),
    "DTC": CurveType("compressional slowness", "us/ft", 35, 250, ("DT", "AC", "DTCO", "DTP", "SONIC", "DT4P", "DTLN")),
    "DTS": CurveType("shear slowness", "us/ft", 60, 800, ("DTSM", "ACS", "DTSH", "DT4S")),
    "PEF": CurveType("photoelectric factor", "b/e", 0, 20, ("PE", "PEFZ", "PDPE", "PEL")),
    "SP": CurveType("spontaneous potential", "mV", -500, 500, ("SPC", "SSP")),
    "RDEP": CurveType(
        "deep resistivity", "ohm.m", 0.01, 1e5, ("RT", "ILD", "LLD", "AT90", "RLA5", "RILD", "RD", "HRLD", "RES_DEP")
    ),
    "RMED": CurveType(
        "medium resistivity", "ohm.m", 0.01, 1e5, ("ILM", "LLM", "AT30", "RLA3", "RILM", "RM", "HRLM", "RES_MED")
    ),
    "RSHA": CurveType(
        "shallow resistivity", "ohm.m", 0.01, 1e5, ("LLS", "SFL", "SFLU", "LL8", "AT10", "RS", "RES_SHA")
    ),
    "RXO": CurveType("flushed-zone resistivity", "ohm.m", 0.01, 1e5, ("MSFL", "RXOZ", "RXO8")),
    "RMIC": CurveType("micro resistivity", "ohm.m", 0.01, 1e5, ("MLL", "RMLL")),
    "ROP": CurveType("rate of penetration", "m/h", 0, 1000, ("ROP5",)),
}
LABELS = ("FACIES", "LITHOLOGY", "LITHO", "LITHOFACIES", "FORCE_2020_LITHOFACIES_LITHOLOGY", "FACIES_CODE", "CLASS")
DEPTH_NAMES = ("DEPT", "DEPTH", "MD", "DEPTH_MD", "MEASURED_DEPTH", "TVD", "TVDSS")

_SPELLINGS = {
    "gAPI": "gapi api gapiu apiu",
    "us/ft": "us/ft us/f usec/ft usec/f µs/ft μs/ft us/foot microsec/ft",
    "us/m": "us/m usec/m µs/m μs/m",
    "g/cm3": "g/cm3 g/cc gm/cc g/c3 gr/cc g/cm^3 gm/cm3 gr/cm3",
    "kg/m3": "kg/m3 k/m3 kg/m^3 kgm3",
    "v/v": "v/v m3/m3 frac fraction dec decimal cfcf ft3/ft3 v/v_decimal vol/vol fract",
    "%": "% pu p.u. percent pct",
    "ohm.m": "ohm.m ohmm ohm-m ohm*m ohm/m ohms ohm.meter ohm.metre",
    "in": 'in inch inches ins "',
    "mm": "mm",
    "cm": "cm",
    "mV": "mv millivolt millivolts",
    "V": "v volt volts",
    "b/e": "b/e barns/e b/elec barn/electron barns/electron",
    "m": "m metre meter metres meters mt",
    "ft": "ft f feet foot",
    "m/h": "m/h m/hr mph_metric",
    "ft/h": "ft/h ft/hr f/hr f/h",
    "": "_ - -- unitless none n/a na unknown dimensionless",
}
UNITS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
FACTORS = {
    ("kg/m3", "g/cm3"): 1e-3,
    ("us/m", "us/ft"): 0.3048,
    ("%", "v/v"): 1e-2,
    ("mm", "in"): 1 / 25.4,
    ("cm", "in"): 1 / 2.54,
    ("m", "in"): 1 / 0.0254,
    ("mm", "cm"): 0.1,
    ("V", "mV"): 1e3,
    ("ft", "m"): 0.3048,
    ("ft/h", "m/h"): 0.3048,
}


def unit_of(text: str) -> str:
    """The unit that a spelling means, such as `g/cm3` for `G/CC`; unknown ones stay as they are, no unit is empty."""
    plain = text.strip().strip("[]()").strip()
    return UNITS.get(plain.lower().replace(" ", ""), plain)


def factor(unit: str, target: str) -> float | None:
    """What converts values in `unit` to `target`; None when the table knows no way."""
    if unit == target:
        return 1.0
    if (unit, target) in FACTORS:
        return FACTORS[unit, target]
    if (target, unit) in FACTORS:
        return 1 / FACTORS[target, unit]
    return None


def alias_ranks(own: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, int]]:
    """Canonical mnemonic and rank of every known mnemonic, upper case; the table's own aliases give way to `own`."""
    ranks: dict[str, tuple[str, int]] = {}
    for name, kind in CURVES.items():
        for rank, alias in enumerate((name, *kind.aliases)):
            ranks.setdefault(alias, (name, rank + 1000))
    for name, aliases in own.items():
        for rank, alias in enumerate((*aliases, name)):
            ranks[alias.upper()] = (name, rank)
    return ranks


def variable_name(mnemonic: str, reserved: Sequence[str]) -> str:
    """A mnemonic as the name of an array: letters, digits and underscores, none of the reserved names in any case."""
    name = re.sub(r"\W+", "_", mnemonic, flags=re.ASCII).strip("_") or "unnamed"
    return f"{name[:100]}_curve" if name.lower() in reserved else name[:100]
