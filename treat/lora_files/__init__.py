"""LoRA files of anybody: what they hold, what is wrong with them, who reads them how."""
