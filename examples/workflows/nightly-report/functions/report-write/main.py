"""Write the report. Input: {"day", "sales", "errors"}; errors is null when they could not be counted."""


def handler(event):
    errors = event["errors"]["errors"] if event["errors"] else "an unknown number of"
    sales = event["sales"]
    return f"{event['day'][:10]}: {sales['orders']} orders, {sales['revenue']} EUR, {errors} errors"
