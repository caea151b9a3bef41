"""Forecasts airline passengers, 144 months: a rolling backtest on the last 36, horizon 12, against two other methods.

pip install 'grujax[data,forecast,plot]' statsmodels
python examples/airline.py                       25 windows, 3 runs of 3 members
python examples/airline.py --windows 2 --seeds 1 --members 1
python examples/airline.py --picture airline.png
"""

import argparse
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from grujax import InputError
from grujax.errors import require, require_count, require_package


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=25, help="forecasts, each one month later than the last")
    parser.add_argument("--seeds", type=int, default=3, help="runs with different seeds; the table is their mean")
    parser.add_argument("--members", type=int, default=3, help="number of GRUs averaged in each run")
    parser.add_argument("--picture", type=Path, help="file for a plot of the forecast of the last year")
    arguments = parser.parse_args()
    try:
        run(**vars(arguments))
    except InputError as error:
        parser.exit(2, f"{error}\n")


def run(windows: int, seeds: int, members: int, picture: Path | None) -> None:
    require_count(seeds, "--seeds")
    if picture is not None:  # fail now, not after minutes
        require(picture.parent.is_dir(), "--picture", "a file in a folder that exists", picture)
        endings = sorted(require_package("matplotlib.figure", "plot").Figure().canvas.get_supported_filetypes())
        require(picture.suffix[1:] in endings, "--picture", f"a name that ends in one of {endings}", picture)
    if find_spec("statsmodels") is None:
        print("Without exponential smoothing: statsmodels is not installed (pip install statsmodels)", file=sys.stderr)
    pandas, datasets = require_package("pandas", "forecast"), require_package("aeon.datasets", "data")
    from grujax.estimators import GRUForecaster

    y = pandas.Series(datasets.load_airline(), pandas.date_range("1949-01", periods=144, freq="MS"), name="passengers")
    forecaster = GRUForecaster(  # options chosen on the months before the last 36
        horizon=12,
        season=12,
        seasons=3,
        lags=12,
        level=3,
        log=True,
        mirrored=True,
        members=members,
        training=replace(GRUForecaster.training, learning_rate=3e-3),
    )

    tables = []
    for seed in range(seeds):
        seeded = replace(forecaster, training=replace(forecaster.training, seed=seed))
        tables.append(seeded.backtest(y, windows=windows))
        print(f"seed {seed}: MAPE {tables[-1].loc['GRU', 'MAPE']:.2f}%", flush=True)
    print(pandas.concat(tables).groupby(level=0, sort=False).mean().round(2))

    if picture is not None:
        import matplotlib

        matplotlib.use("Agg")
        forecast = forecaster.fit(y[:-12]).predict()
        axes = y[-48:].plot(label="passengers", legend=True)
        forecast["forecast"].plot(ax=axes, label="forecast", legend=True)
        axes.fill_between(axes.get_lines()[-1].get_xdata(), forecast["0.1"], forecast["0.9"], alpha=0.2)
        axes.set(ylabel="passengers, thousands per month", title="The last year, forecast from the years before it")
        axes.figure.savefig(picture)
        print(f"wrote {picture}")


if __name__ == "__main__":
    main()
