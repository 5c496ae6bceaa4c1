"""What is shown of finished work: tables here, pictures and pages in rooms of their own.

Nothing here trains or clusters: it reads what the folders hold. Tables import no matplotlib.
"""

from .circuits.table import circuits_table
from .summary import summarize
from .tables import cluster_table, results_table, run_table

__all__ = ["circuits_table", "cluster_table", "results_table", "run_table", "summarize"]
