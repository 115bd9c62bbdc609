"""`configs/prices.yaml`: what an hour of each size costs, from which day on. Read again when it changes.

Money is whole numbers: millionths of the currency. Nothing here is a float.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import structlog
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fleet.config_files import ConfigFile, KnownDefinitions, kept_file, read_config

log = structlog.get_logger(__name__)

PRICES_FILE = Path(__file__).resolve().parent.parent.parent / "configs" / "prices.yaml"
MILLION = 1_000_000


def micros(value: Any) -> int:
    """A price as written (`0.012`) in millionths; more than six decimals cannot be charged exactly."""
    try:
        amount = Decimal(str(value)) * MILLION
    except ArithmeticError:
        raise ValueError(f"{value} is no price") from None
    if not amount.is_finite() or amount < 0 or amount != amount.to_integral_value():
        raise ValueError(f"{value} is no price: at least 0, with at most six decimals")
    return int(amount)


class Tariff(BaseModel):
    """Prices per hour from a day (UTC) on. `idle`: of pool servers nobody has claimed; `regions`: where others hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    since: date = Field(alias="from")
    per_hour: dict[str, int]
    idle_per_hour: dict[str, int] = {}
    regions: dict[str, dict[str, int]] = {}

    @field_validator("per_hour", "idle_per_hour", mode="before")
    @classmethod
    def _micros(cls, value: Any) -> Any:
        return {size: micros(price) for size, price in _mapping(value).items()}

    @field_validator("regions", mode="before")
    @classmethod
    def _regions(cls, value: Any) -> Any:
        return {region: cls._micros(sizes) for region, sizes in _mapping(value).items()}

    @property
    def since_ms(self) -> int:
        return int(datetime(self.since.year, self.since.month, self.since.day, tzinfo=UTC).timestamp()) * 1000

    def price(self, region: str, size: str, kind: str) -> int:
        if kind == "idle" and size in self.idle_per_hour:
            return self.idle_per_hour[size]
        return self.regions.get(region, {}).get(size, self.per_hour.get(size, 0))


def _mapping(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError("it must map sizes to prices")
    return cast("dict[Any, Any]", value)


class Prices(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    currency: str = Field(pattern="^[A-Z]{3}$")
    tariffs: tuple[Tariff, ...]

    @model_validator(mode="after")
    def _ordered(self) -> "Prices":
        days = [tariff.since for tariff in self.tariffs]
        if days != sorted(set(days)):
            raise ValueError("tariffs must be in order, one for each day")
        return self

    def per_hour(self, region: str, size: str, kind: str, at: int) -> int:
        """Millionths for an hour that begins at `at`; 0 before the first tariff, and for sizes without a price."""
        for tariff in reversed(self.tariffs):
            if tariff.since_ms <= at:
                return tariff.price(region, size, kind)
        return 0


def prices_of(content: Any) -> Prices:
    """The prices of a file's content."""
    return Prices.model_validate(content)


def read_prices(path: Path) -> Prices:
    """`BadConfig` says what is wrong in the file, and where."""
    return read_config(path, prices_of)


@dataclass(frozen=True, slots=True)
class SizePrice:
    """What a size last cost, in millionths per hour; `regions`: where another price held."""

    used: int
    idle: int | None
    regions: dict[str, int]


def last_prices(prices: Prices) -> dict[str, SizePrice]:
    """By size: as the last tariff that names it says."""
    found: dict[str, SizePrice] = {}
    for tariff in prices.tariffs:
        for size, used in tariff.per_hour.items():
            elsewhere = {region: sizes[size] for region, sizes in tariff.regions.items() if size in sizes}
            found[size] = SizePrice(used, tariff.idle_per_hour.get(size), elsewhere)
    return found


def with_removed(prices: Prices, known: Mapping[str, SizePrice]) -> Prices:
    """The prices, with what sizes cost that none of the tariffs names any more: servers of them may still run, and
    must not become free of charge by an edit."""
    gone = {size: price for size, price in known.items() if size not in last_prices(prices)}
    if not gone:
        return prices
    return prices.model_copy(update={"tariffs": tuple(_completed(tariff, gone) for tariff in prices.tariffs)})


def _completed(tariff: Tariff, gone: Mapping[str, SizePrice]) -> Tariff:
    regions = {region: dict(sizes) for region, sizes in tariff.regions.items()}
    for size, price in gone.items():
        for region, amount in price.regions.items():
            regions.setdefault(region, {})[size] = amount
    idle = {size: price.idle for size, price in gone.items() if price.idle is not None}
    return tariff.model_copy(
        update={
            "per_hour": tariff.per_hour | {size: price.used for size, price in gone.items()},
            "idle_per_hour": tariff.idle_per_hour | idle,
            "regions": regions,
        }
    )


class PriceBook:
    """The prices of a file, as it is now. While it is broken, what it said before holds; a size that was taken out of
    it keeps its last price."""

    def __init__(self, path: Path, kept: Path | None = None, known: Path | None = None) -> None:
        self._file = ConfigFile(path, prices_of, kept)
        self._known = KnownDefinitions(known)
        self._version = 0
        self._prices = Prices(currency="USD", tariffs=())

    def now(self) -> Prices:
        """`BadConfig` (a 503) if they could never be read: nothing is billed by guessed prices."""
        prices = self._file.now()
        if self._version != self._file.version or not self._prices.tariffs:
            self._version = self._file.version
            known = self._known.remember({size: asdict(price) for size, price in last_prices(prices).items()})
            self._prices = with_removed(prices, {size: SizePrice(**one) for size, one in known.items()})
            if gone := sorted(known.keys() - last_prices(prices).keys()):
                log.warning("price_removed", sizes=gone, file=str(self._file.path))
        return self._prices


@lru_cache(maxsize=4)
def price_book(path: Path | None = None) -> PriceBook:
    """One per process and file."""
    return PriceBook(path or PRICES_FILE, kept_file("prices.yaml"), kept_file("prices.json"))
