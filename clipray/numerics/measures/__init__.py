"""Measures: of outcomes, of complementarity, of similarity, with intervals, ranks and cost."""
