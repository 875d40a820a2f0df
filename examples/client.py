"""The `openai` package against a running server: a streamed answer with a target, and the server's verdict.

In one terminal: adaserve serve
In another:      python examples/client.py   (pip install openai)
"""

from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
stream = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": "Give me three tips for a first garden."}],
    max_tokens=120,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
    extra_body={"slo": {"tpot_ms": 50, "ttft_ms": 1000}},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    metrics = getattr(chunk, "metrics", None)  # with the last chunk
    if metrics:
        print(f"\n\n{metrics['slo']}")
