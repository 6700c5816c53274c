"""Queries to start from, which run on any output: ``vidray query --examples``."""

from __future__ import annotations

EXAMPLES = {
    "Least sure: the smallest margins between the first label and the second": """
SELECT uri, label, top_k[2].label AS second, score - top_k[2].score AS margin
FROM predictions WHERE status = 'ok' AND len(top_k) > 1 ORDER BY margin LIMIT 20""",
    "Near the threshold: what a person should look at": """
SELECT uri, label, score FROM predictions WHERE score BETWEEN 0.4 AND 0.6 ORDER BY abs(score - 0.5) LIMIT 20""",
    "A label over the nights, here the most frequent one; or write label = 'archery'": """
SELECT CAST(planned_at AS DATE) AS night, count(*) AS videos, avg(score) AS mean_score
FROM predictions WHERE label = (SELECT mode(label) FROM predictions) GROUP BY night ORDER BY night""",
    "Labels that the last night brought for the first time": """
SELECT label, count(*) AS videos, min(planned_at) AS since FROM all_attempts WHERE label IS NOT NULL
GROUP BY label HAVING since = (SELECT max(planned_at) FROM all_attempts) ORDER BY videos DESC""",
    "Where two models disagree": """
SELECT a.uri, a.label, b.label AS other, a.score, b.score AS other_score
FROM predictions a JOIN predictions b USING (uri, etag)
WHERE a.result_key < b.result_key AND a.start_seconds IS NOT DISTINCT FROM b.start_seconds
  AND a.end_seconds IS NOT DISTINCT FROM b.end_seconds AND a.label <> b.label
ORDER BY a.score + b.score DESC LIMIT 20""",
    "By folder": """
SELECT regexp_replace(uri, '[^/]*$', '') AS folder, count(*) AS videos, count(*) FILTER (status <> 'ok') AS failed,
       mode(label) AS most_frequent, avg(score) AS mean_score
FROM predictions GROUP BY folder ORDER BY videos DESC LIMIT 20""",
    "Failures by kind": """
SELECT status, count(*) AS videos, any_value(error) AS for_example
FROM failures GROUP BY status ORDER BY videos DESC""",
    "The slowest videos": """
SELECT uri, decode_seconds, duration_seconds, codec, width, height
FROM predictions WHERE decode_seconds IS NOT NULL ORDER BY decode_seconds DESC LIMIT 20""",
    "The longest moments (vidray score --segments)": """
SELECT * FROM moments(0.5) ORDER BY end_seconds - start_seconds DESC LIMIT 20""",
    "How the nights went": """
SELECT planned_at, outcome, num_planned, num_scored, num_failed, num_deferred, num_given_up, videos_per_second
FROM runs ORDER BY planned_at DESC LIMIT 20""",
}
"""What each answers, and its SQL."""


def format_examples() -> str:
    """SQL with comments, as a file of queries has it."""
    return "\n\n".join(f"-- {title}{sql};" for title, sql in EXAMPLES.items())
