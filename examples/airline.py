"""Forecasts airline passengers, 144 months: a rolling backtest of the last 36, horizon 12, beside two other methods.

python examples/airline.py                       25 windows, 3 runs of 3 members
python examples/airline.py --windows 2 --seeds 1 --members 1
python examples/airline.py --picture airline.png
"""

import argparse
from dataclasses import replace

import pandas as pd
from aeon.datasets import load_airline

from grujax.estimators import GRUForecaster

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--windows", type=int, default=25, help="forecasts, each a month later than the one before")
parser.add_argument("--seeds", type=int, default=3, help="runs with other seeds, whose mean the table holds")
parser.add_argument("--members", type=int, default=3, help="GRUs that are averaged in each run")
parser.add_argument("--picture", help="a file for a plot of the forecast of the last year")
arguments = parser.parse_args()

y = pd.Series(load_airline(), pd.date_range("1949-01", periods=144, freq="MS"), name="passengers")
forecaster = GRUForecaster(  # chosen on the months before the last 36
    horizon=12,
    season=12,
    seasons=3,
    lags=12,
    level=3,
    log=True,
    mirrored=True,
    members=arguments.members,
    training=replace(GRUForecaster.training, weight_decay=3.0),
)

tables = []
for run in range(arguments.seeds):
    first = run * arguments.members
    of_run = replace(forecaster, training=replace(forecaster.training, seed=first))
    tables.append(of_run.backtest(y, windows=arguments.windows))
    print(f"seeds {first} to {first + arguments.members - 1}: MAPE {tables[-1].loc['GRU', 'MAPE']:.2f}%", flush=True)
print(pd.concat(tables).groupby(level=0, sort=False).mean().round(2))

if arguments.picture:
    import matplotlib

    matplotlib.use("Agg")
    forecast = forecaster.fit(y[:-12]).predict()
    axes = y[-48:].plot(label="passengers", legend=True)
    forecast["forecast"].plot(ax=axes, label="forecast", legend=True)
    axes.fill_between(axes.get_lines()[-1].get_xdata(), forecast["0.1"], forecast["0.9"], alpha=0.2)
    axes.set(ylabel="passengers, thousands a month", title="The last year, forecast from what was before it")
    axes.figure.savefig(arguments.picture)
