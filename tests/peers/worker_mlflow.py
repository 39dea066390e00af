"""Every span that an MLflow server has, as JSON on stdout, asked through MLflow's own client.

python tests/peers/worker_mlflow.py URL
"""

from __future__ import annotations

import json
import sys

import mlflow


def main(url: str) -> None:
    mlflow.set_tracking_uri(url)
    traces = mlflow.search_traces(locations=["0"], max_results=500, return_type="list")
    spans = [
        {
            "id": span.span_id,
            "parent_id": span.parent_id,
            "name": span.name,
            "kind": span.span_type.lower(),
            "attributes": span.attributes,
        }
        for trace in traces
        for span in trace.data.spans
    ]
    print(json.dumps(spans, default=str))


if __name__ == "__main__":
    main(sys.argv[1])
