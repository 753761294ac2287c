"""llm-grpo: fine-tune a language model with GRPO on your own task, from a YAML file to a model on the Hub."""
