"""What another implementation of HDR histograms finds in latencies.csv: percentiles.csv, made by

    pip install hdrhistogram==0.10.8
    python3 percentiles.py <latencies.csv >percentiles.csv
"""

import sys

from hdrh.histogram import HdrHistogram

# From 1 ns to 100 s at three digits, as in src/load/slices.rs.
histogram = HdrHistogram(1, 100_000_000_000, 3)
for line in sys.stdin:
    if line.strip() and not line.startswith("#"):
        assert histogram.record_value(int(line))

print("# latencies.csv by HdrHistogram_py (PyPI: hdrhistogram 0.10.8), in nanoseconds: percentiles.py has the command.")
for percentile in [50, 90, 99, 99.9, 99.99]:
    print(f"p{percentile},{histogram.get_value_at_percentile(percentile)}")
print(f"max,{histogram.get_max_value()}")
print(f"mean,{histogram.get_mean_value()!r}")
print(f"count,{histogram.get_total_count()}")
