"""A Hugging Face Space for a merged model: the project's chat page, with reasoning and answer apart.

Variables of the Space: MODEL_NAME (a merged model on the Hub, or a folder), SYSTEM_PROMPT (that of the training).
"""

import os

from llm_grpo.prompts import SYSTEM_PROMPTS
from llm_grpo.serving.page import build_page, from_transformers

name = os.environ.get("MODEL_NAME", "")
if not name:
    raise SystemExit("Set the variable MODEL_NAME (Settings of the Space) to the merged model, as user/repo.")
system = os.environ.get("SYSTEM_PROMPT", SYSTEM_PROMPTS["xml"])
page = build_page(from_transformers(name), [{"role": "system", "content": system}], title=name.rpartition("/")[2])

if __name__ == "__main__":
    page.launch()
