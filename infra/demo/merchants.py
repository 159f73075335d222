"""The demo merchants: six trades as data, each with its own rhythm.

Figures are plausible, not measured: they exist so that the analytics have something true to find.
Golden hours are the hours given in `peaks`; all else is noise around an even day. A profile that
contradicts itself (a peak outside the open hours, shares above one) is refused on import.
"""

from dataclasses import dataclass, field
from datetime import datetime

from infra.demo.ids import FOUNDED_AT, made_id

TIMEZONE = "Asia/Ho_Chi_Minh"
EMAIL_DOMAIN = "demo.giovang.vn"


@dataclass(frozen=True, slots=True)
class Profile:
    """One shop: who it is, when its customers come, what they spend and how payments end."""

    slug: str
    name: str
    trade: str
    payments_per_day: float
    opens_hour: int
    closes_hour: int
    # Local hour -> how many times busier than an ordinary open hour.
    peaks: dict[int, float]
    # Monday to Sunday, around 1.
    weekdays: tuple[float, float, float, float, float, float, float]
    # January to December, around 1.
    months: tuple[float, ...]
    before_tet: float
    tet: float
    after_tet: float
    holiday: float
    growth_per_year: float
    ticket_median_vnd: int
    ticket_sigma: float
    ticket_step_vnd: int
    ticket_limits_vnd: tuple[int, int]
    # Country of the payer -> weight.
    countries: dict[str, float]
    usdc_share: float
    customers: int
    descriptions: tuple[str, ...]
    fee_bps: int = 100
    day_variation: float = 0.22
    expired_share: float = 0.05
    failed_share: float = 0.012
    underpaid_share: float = 0.008
    overpaid_share: float = 0.006
    refund_share: float = 0.012
    hour_weights: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Check the figures against each other and derive the share of each local hour."""
        open_hours = range(self.opens_hour, self.closes_hour)
        if not set(self.peaks) <= set(open_hours):
            raise ValueError(f"{self.slug}: a peak lies outside the open hours")
        if len(self.months) != 12:
            raise ValueError(f"{self.slug}: twelve months are needed")
        shares = (self.expired_share, self.failed_share, self.underpaid_share, self.overpaid_share)
        if min(shares) < 0 or sum(shares) >= 1 or not 0 <= self.refund_share < 1:
            raise ValueError(f"{self.slug}: shares must be a part of one")
        weights = [self.peaks.get(h, 1.0) if h in open_hours else 0.0 for h in range(24)]
        total = sum(weights)
        object.__setattr__(self, "hour_weights", tuple(w / total for w in weights))

    @property
    def email(self) -> str:
        """Staff login of the shop's owner."""
        return f"{self.slug}@{EMAIL_DOMAIN}"

    def merchant_id(self, seed: int) -> str:
        """Return the shop's merchant id under `seed`; the same for every period."""
        return made_id("mer", FOUNDED_AT, seed, self.slug)


def opened_at() -> datetime:
    """Return the moment all demo shops count as founded."""
    return FOUNDED_AT


PROFILES: tuple[Profile, ...] = (
    Profile(
        slug="coffee",
        name="Cà Phê Giọt Nắng",
        trade="coffee shop",
        payments_per_day=46,
        opens_hour=6,
        closes_hour=22,
        peaks={8: 2.4, 14: 2.0, 15: 2.1, 20: 2.3},
        weekdays=(0.92, 0.9, 0.94, 0.98, 1.08, 1.14, 1.04),
        months=(1.0, 0.9, 1.02, 1.06, 1.08, 1.02, 0.98, 0.96, 0.98, 1.0, 1.0, 1.0),
        before_tet=1.15,
        tet=0.7,
        after_tet=1.05,
        holiday=1.3,
        growth_per_year=0.35,
        ticket_median_vnd=95_000,
        ticket_sigma=0.45,
        ticket_step_vnd=5_000,
        ticket_limits_vnd=(29_000, 900_000),
        countries={"VN": 62, "KR": 10, "US": 8, "JP": 5, "AU": 4, "SG": 4, "FR": 4, "DE": 3},
        usdc_share=0.62,
        customers=1400,
        descriptions=("Cà phê sữa đá", "Bạc xỉu", "Cà phê muối", "Trà đào cam sả", "Bánh mì chảo"),
        refund_share=0.006,
    ),
    Profile(
        slug="pho",
        name="Phở Gánh Hàng Đào",
        trade="restaurant",
        payments_per_day=34,
        opens_hour=6,
        closes_hour=22,
        peaks={7: 2.3, 12: 2.6, 18: 1.9, 19: 2.3},
        weekdays=(0.96, 0.95, 0.96, 0.98, 1.03, 1.1, 1.02),
        months=(1.05, 0.95, 1.0, 1.0, 0.97, 0.94, 0.95, 0.96, 0.98, 1.02, 1.08, 1.1),
        before_tet=1.1,
        tet=0.15,
        after_tet=0.9,
        holiday=1.15,
        growth_per_year=0.15,
        ticket_median_vnd=180_000,
        ticket_sigma=0.5,
        ticket_step_vnd=5_000,
        ticket_limits_vnd=(55_000, 3_000_000),
        countries={"VN": 50, "KR": 14, "JP": 8, "US": 8, "CN": 6, "TH": 5, "FR": 5, "AU": 4},
        usdc_share=0.55,
        customers=1600,
        descriptions=("Phở bò tái nạm", "Phở gà", "Bún chả", "Nem rán", "Phở sốt vang"),
        refund_share=0.005,
    ),
    Profile(
        slug="lacquer",
        name="Sơn Mài Hội An",
        trade="souvenirs and lacquerware",
        payments_per_day=16,
        opens_hour=9,
        closes_hour=21,
        peaks={10: 2.2, 16: 2.3, 17: 2.5, 19: 2.0},
        weekdays=(0.9, 0.9, 0.92, 0.96, 1.06, 1.16, 1.1),
        months=(1.2, 1.25, 1.22, 1.05, 0.9, 0.88, 0.98, 0.95, 0.72, 0.7, 0.95, 1.2),
        before_tet=1.35,
        tet=1.1,
        after_tet=1.3,
        holiday=1.5,
        growth_per_year=0.25,
        ticket_median_vnd=650_000,
        ticket_sigma=0.75,
        ticket_step_vnd=10_000,
        ticket_limits_vnd=(80_000, 60_000_000),
        countries={"US": 20, "KR": 18, "FR": 12, "AU": 12, "JP": 11, "DE": 9, "GB": 9, "VN": 9},
        usdc_share=0.75,
        customers=2400,
        descriptions=("Hộp sơn mài", "Tranh sơn mài", "Đèn lồng", "Khay khảm trai", "Lụa tơ tằm"),
        expired_share=0.07,
        refund_share=0.02,
    ),
    Profile(
        slug="electronics",
        name="Điện Máy Bách Khoa",
        trade="electronics",
        payments_per_day=11,
        opens_hour=8,
        closes_hour=22,
        peaks={11: 2.0, 17: 2.2, 19: 2.8, 20: 2.6},
        weekdays=(0.86, 0.86, 0.9, 0.94, 1.06, 1.24, 1.14),
        months=(1.15, 0.8, 0.92, 0.94, 0.96, 1.0, 1.0, 1.1, 1.08, 1.0, 1.15, 1.1),
        before_tet=1.5,
        tet=0.1,
        after_tet=0.8,
        holiday=1.35,
        growth_per_year=0.1,
        ticket_median_vnd=3_900_000,
        ticket_sigma=0.9,
        ticket_step_vnd=10_000,
        ticket_limits_vnd=(150_000, 85_000_000),
        countries={"VN": 82, "KR": 6, "CN": 4, "SG": 4, "US": 4},
        usdc_share=0.35,
        customers=1900,
        descriptions=("Tai nghe", "Điện thoại", "Máy tính xách tay", "Sạc dự phòng", "Bàn phím cơ"),
        failed_share=0.02,
        refund_share=0.035,
    ),
    Profile(
        slug="homestay",
        name="Nhà Mây Sa Pa",
        trade="homestay",
        payments_per_day=8,
        opens_hour=7,
        closes_hour=23,
        peaks={13: 2.2, 14: 2.6, 20: 2.4, 21: 2.6},
        weekdays=(0.78, 0.78, 0.84, 0.98, 1.3, 1.34, 0.98),
        months=(0.95, 1.0, 1.1, 1.15, 1.05, 1.1, 1.15, 1.05, 1.1, 1.05, 0.8, 0.9),
        before_tet=0.7,
        tet=1.4,
        after_tet=1.3,
        holiday=1.9,
        growth_per_year=0.3,
        ticket_median_vnd=1_250_000,
        ticket_sigma=0.55,
        ticket_step_vnd=50_000,
        ticket_limits_vnd=(350_000, 18_000_000),
        countries={"VN": 34, "US": 12, "FR": 12, "KR": 10, "DE": 9, "AU": 9, "GB": 8, "NL": 6},
        usdc_share=0.7,
        customers=1500,
        descriptions=("Phòng đôi", "Phòng gia đình", "Giường tập thể", "Trekking Tả Van"),
        expired_share=0.09,
        refund_share=0.045,
    ),
    Profile(
        slug="school",
        name="Anh Ngữ Cầu Vồng",
        trade="language school",
        payments_per_day=8,
        opens_hour=8,
        closes_hour=21,
        peaks={17: 2.6, 18: 3.0, 19: 2.6},
        weekdays=(1.1, 1.05, 1.05, 1.02, 0.98, 1.2, 0.6),
        months=(0.9, 0.7, 1.05, 0.95, 0.95, 1.35, 1.25, 1.1, 1.35, 0.9, 0.8, 0.7),
        before_tet=0.5,
        tet=0.02,
        after_tet=1.2,
        holiday=0.1,
        growth_per_year=0.2,
        ticket_median_vnd=4_800_000,
        ticket_sigma=0.35,
        ticket_step_vnd=100_000,
        ticket_limits_vnd=(1_200_000, 24_000_000),
        countries={"VN": 93, "KR": 3, "JP": 2, "PH": 2},
        usdc_share=0.3,
        customers=900,
        descriptions=("Học phí IELTS", "Tiếng Anh trẻ em", "Giao tiếp công sở", "Thi xếp lớp"),
        expired_share=0.04,
        refund_share=0.015,
    ),
)


def profile(slug: str) -> Profile:
    """Return the profile named `slug`; KeyError names an unknown one."""
    for candidate in PROFILES:
        if candidate.slug == slug:
            return candidate
    raise KeyError(slug)
