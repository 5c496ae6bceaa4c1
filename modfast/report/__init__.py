"""Reports on finished work: tables here, pictures and pages in subpackages.

Nothing here trains or clusters: reports are made from the files of a folder. Tables do not import matplotlib.
"""

from .circuits.table import circuits_table
from .summary import summarize
from .tables import cluster_table, results_table, run_table

__all__ = ["circuits_table", "cluster_table", "results_table", "run_table", "summarize"]
