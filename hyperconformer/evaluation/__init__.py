"""Error rates, intervals, costs and plots."""
