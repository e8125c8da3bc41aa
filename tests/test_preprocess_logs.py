"""Well logs: depth steps, spikes, missing values by name, imputation with a mask channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import scipy.signal
import xarray as xr

from geobatch.errors import DataError, UsageError
from geobatch.preprocess.logs import Imputation, curve_names, despike_logs, handle_missing, resample_logs


def logs(wells: int = 3, depths: int = 60) -> xr.Dataset:
    generator = np.random.default_rng(0)
    gamma = generator.normal(80, 20, (wells, depths)).cumsum(axis=1).astype(np.float32)
    density = (2.5 - 0.001 * gamma).astype(np.float32)
    depth = ("depth", 1000 + 0.5 * np.arange(depths), {"units": "m"})
    return xr.Dataset(
        {
            "GR": (("well", "depth"), gamma, {"units": "gAPI"}),
            "RHOB": (("well", "depth"), density),
            "facies": (("well", "depth"), generator.integers(0, 9, (wells, depths))),
            "kelly_bushing_m": ("well", np.arange(wells) * 1.0),
        },
        {"well": [f"w{i}" for i in range(wells)], "depth": depth},
    )


def test_resampled_curves_equal_scipy_and_other_variables_take_the_nearest() -> None:
    wells = logs()
    found = resample_logs(wells, 1.0)
    expected = scipy.signal.resample_poly(wells["GR"].values.astype(np.float64), 1, 2, axis=1, padtype="edge")
    np.testing.assert_allclose(found["GR"], expected, rtol=1e-5)
    np.testing.assert_array_equal(found["facies"], wells["facies"][:, ::2])
    np.testing.assert_allclose(found["depth"], 1000 + np.arange(30))
    assert found["GR"].attrs == {"units": "gAPI"} and found["depth"].attrs == {"units": "m"}
    assert list(found.data_vars) == list(wells.data_vars)
    xr.testing.assert_identical(found["kelly_bushing_m"], wells["kelly_bushing_m"])


def test_curves_end_where_they_ended_before() -> None:
    wells = logs()
    wells["GR"][0, :20] = np.nan
    found = resample_logs(wells, 0.25)["GR"]
    assert np.isnan(found[0, :39]).all() and np.isfinite(found[0, 40:]).all() and np.isfinite(found[1]).all()


def test_spikes_go_and_gaps_stay() -> None:
    wells = logs()
    smooth = np.linspace(60, 90, 60, dtype=np.float32)
    spiked = smooth.copy()
    spiked[[10, 40]] = 900, np.nan
    wells["GR"][1] = spiked
    found = despike_logs(wells, window_m=3.0, curves=["GR"])
    np.testing.assert_allclose(found["GR"][1, 10], smooth[10], atol=1)
    assert np.isnan(found["GR"][1, 40])
    xr.testing.assert_identical(found["RHOB"], wells["RHOB"])


def test_missing_values_are_handled_by_name() -> None:
    wells = logs()
    wells["GR"][0, 10:12] = np.nan
    wells["GR"][2] = np.nan
    filled = handle_missing(wells, "fill", curves=["GR"], value=-999)
    assert (filled["GR"].values[2] == -999).all()
    bridged = handle_missing(wells, "interpolate", max_gap_m=2.0)["GR"].values
    line = pandas.Series(wells["GR"].values[0]).interpolate().to_numpy()
    np.testing.assert_allclose(bridged[0], line, rtol=1e-6)
    assert np.isnan(bridged[2]).all()
    masked = handle_missing(wells, "mask")
    assert (masked["GR"].values[2] == 0).all() and (masked["GR_valid"].values[2] == 0).all()
    assert masked["GR_valid"].values.sum() == np.isfinite(wells["GR"].values).sum()
    assert curve_names(masked) == ["GR", "RHOB"]
    dropped = handle_missing(wells, "drop")
    assert dropped.sizes == {"row": 118} and set(dropped["well"].values) == {"w0", "w1"}
    assert np.isfinite(dropped["GR"]).all() and 1005.0 not in dropped["depth"].values[:58]
    with pytest.raises(UsageError, match="need value"):
        handle_missing(wells, "fill")
    with pytest.raises(UsageError, match="unknown way"):
        handle_missing(wells, "guess")  # type: ignore[arg-type]


def test_imputed_curves_come_from_the_wells_of_training_alone() -> None:
    wells = logs()
    train, blind = wells.isel(well=[0, 1]), wells.isel(well=[2]).drop_vars("RHOB")
    blind["GR"][0, :5] = np.nan
    by_median = Imputation(curves=("RHOB",)).fit(train)
    assert (by_median.apply(blind)["RHOB"].values == np.float32(np.median(train["RHOB"].values))).all()
    by_lines = Imputation(method="regression", curves=("RHOB", "GR")).fit(train)
    found = by_lines.apply(blind)
    np.testing.assert_allclose(found["RHOB"].values[0, 5:], wells["RHOB"].values[2, 5:], atol=1e-4)
    # Neither curve is there in the first rows: both are medians.
    np.testing.assert_array_equal(found["GR"].values[0, :5], np.float32(np.median(train["GR"].values)))
    np.testing.assert_array_equal(found["GR"].values[0, 5:], blind["GR"].values[0, 5:])
    assert found["GR_valid"].values[0].tolist() == [0.0] * 5 + [1.0] * 55
    assert not found["RHOB_valid"].values.any()
    assert Imputation.model_validate_json(by_lines.model_dump_json()) == by_lines


def test_wrong_curves_and_depths_are_refused() -> None:
    wells = logs()
    with pytest.raises(UsageError, match="no such curve; found DT; expected one of GR, RHOB"):
        despike_logs(wells, window_m=3, curves=["DT"])
    with pytest.raises(DataError, match="in no well"):
        Imputation().fit(wells.assign(GR=wells["GR"] * np.nan))
    with pytest.raises(UsageError, match=r"fit\(\)"):
        Imputation().apply(wells)
    wells["depth"].attrs["units"] = "ft"
    with pytest.raises(UsageError, match=r"steps of 0\.5 ft"):
        despike_logs(wells, window_m=3)


def test_missing_photoelectric_curve_of_the_contest_is_made_up(test_data: Path) -> None:
    table = pandas.read_csv(test_data / "subsurface/seg2016_contest/facies_vectors.csv")
    names = ["GR", "ILD_log10", "DeltaPHI", "PHIND", "PE"]
    # The pseudo-well Recruit F9 has no place in depth.
    places = table[table["Well Name"] != "Recruit F9"].drop_duplicates(["Well Name", "Depth"])
    rows = places.set_index(["Well Name", "Depth"])[names].rename_axis(["well", "depth"])
    wells = rows.to_xarray().transpose("well", "depth").astype(np.float32)
    missing = np.isnan(wells["PE"].values) & np.isfinite(wells["GR"].values)
    assert 800 < missing.sum() <= 917
    by_lines, by_median = (Imputation(method=m, curves=("PE",)).fit(wells) for m in ("regression", "median"))
    held = wells.copy(deep=True)
    known = np.argwhere(np.isfinite(wells["PE"].values))[::3]
    held["PE"].values[known[:, 0], known[:, 1]] = np.nan
    truth = wells["PE"].values[known[:, 0], known[:, 1]]
    errors = [
        np.abs(i.fit(held).apply(held)["PE"].values[known[:, 0], known[:, 1]] - truth).mean()
        for i in (by_lines, by_median)
    ]
    assert errors[0] < 0.9 * errors[1]
    assert np.isfinite(by_lines.apply(wells)["PE"].values).all()
