"""Cascades: backbones one after another, and images that leave as soon as what has run is sure enough.

`thresholds` says who leaves when, and what that costs in accuracy; `search` which backbones, in which order; `fitted`
joins them to any fuser; `curve` draws accuracy against cost.
"""
