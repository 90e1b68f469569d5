"""Experiments: recipes as data, studies of methods times seeds, their results and reports (extra ``lab``)."""
