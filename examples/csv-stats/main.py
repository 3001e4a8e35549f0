"""Describe every numeric column of a CSV. Input: {"csv": text}."""

import csv
import io
import statistics


def handler(event, context):
    rows = list(csv.DictReader(io.StringIO(event["csv"])))
    return {"rows": len(rows), "columns": {name: describe([row[name] for row in rows]) for name in rows[0]}}


def describe(values):
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return {"distinct": len(set(values))}
    return {
        "min": min(numbers),
        "median": statistics.median(numbers),
        "mean": round(statistics.fmean(numbers), 3),
        "max": max(numbers),
    }
