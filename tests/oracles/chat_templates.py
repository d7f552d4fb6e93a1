"""Writes tests/data/toolkit/chat_templates.json: templates in the manner of published ones, and what transformers makes of them.

Run with an interpreter that has transformers:

    python tests/oracles/chat_templates.py
"""

# ruff: noqa: E501 (templates are written as they are published)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

OUT = Path(__file__).parent.parent / "data" / "toolkit" / "chat_templates.json"
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n"
        "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "headers": (
        "{{- bos_token }}\n{%- set ns = namespace(system='') %}\n"
        "{%- if messages[0].role == 'system' %}\n    {%- set ns.system = messages[0].content | trim %}\n"
        "    {%- set messages = messages[1:] %}\n{%- endif %}\n"
        "{{- '<|start|>system<|end_header|>\n\n' ~ ns.system ~ '<|eot|>' }}\n"
        "{%- for message in messages %}\n    {{- '<|start|>' + message['role'] + '<|end_header|>\n\n' + message['content'] | trim + '<|eot|>' }}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|start|>assistant<|end_header|>\n\n' }}\n{%- endif %}\n"
    ),
    "turns": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<turn>' + role + '\n' + message['content'] | trim + '<end>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<turn>model\n'}}{% endif %}"
    ),
    "thinking": (
        "{%- if tools %}\n    {{- '<|im_start|>system\n# Tools\n' }}\n    {%- for tool in tools %}\n        {{- '\n' }}\n"
        "        {{- tool | tojson }}\n    {%- endfor %}\n    {{- '<|im_end|>\n' }}\n{%- endif %}\n"
        "{%- for message in messages[::-1] %}\n    {%- if loop.first and message.role == 'user' %}{% set _ = 1 %}{% endif %}\n{%- endfor %}\n"
        "{%- for message in messages %}\n    {%- set content = message.content %}\n"
        "    {%- if message.role == 'assistant' and '</think>' in content %}\n"
        "        {%- set content = content.split('</think>')[-1].lstrip('\n') %}\n    {%- endif %}\n"
        "    {{- '<|im_start|>' + message.role + '\n' + content }}\n"
        "    {%- if message.tool_calls %}\n        {%- for call in message.tool_calls %}\n"
        '            {{- \'\n<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}\n'
        "            {{- call.function.arguments | tojson(indent=2) }}{{- '}\n</tool_call>' }}\n        {%- endfor %}\n    {%- endif %}\n"
        "    {{- '<|im_end|>\n' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\n' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}\n        {{- '<think>\n\n</think>\n\n' }}\n    {%- endif %}\n"
        "{%- endif %}"
    ),
    "marked": (
        "{%- for m in messages %}\n  {%- if m.role == 'assistant' %}\n    {% generation %}{{ m.content ~ eos_token }}{% endgeneration %}\n"
        "  {%- else %}\n    [{{ m['role'] | upper }}] {{ m.content | replace('\n', ' ') }}\n  {%- endif %}\n"
        "  {%- if m.role == 'stop' %}{% break %}{% endif %}\n{%- endfor %}\n{% macro wrap(x) %}<{{ x }}>{% endmacro %}{{ wrap('end') }}"
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}"
    ),
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather in <b>a town</b> & more",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "  You are terse.\n"}, {"role": "user", "content": 'Grüße, 你好 "quoted" <tag> & more'}],
    [
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nanswer"},
        {"role": "user", "content": "again"},
    ],
    [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"town": "Köln"}}}],
        },
        {"role": "tool", "content": '{"sky": "blue"}'},
    ],
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def main() -> None:
    """Write the file."""
    cases = []
    for name, template in TEMPLATES.items():
        for messages in CONVERSATIONS:
            for options in ({}, {"open": False}, {"thinking": False}, {"thinking": True, "tools": [TOOL]}):
                more = {"enable_thinking": options["thinking"]} if "thinking" in options else {}
                try:
                    (text,), _ = render_jinja_template(
                        [messages],
                        tools=options.get("tools"),
                        chat_template=template,
                        add_generation_prompt=options.get("open", True),
                        **TOKENS,
                        **more,
                    )
                    answer = {"text": text}
                except Exception as error:  # noqa: BLE001 (a template's refusal is what is kept)
                    answer = {"error": str(error)}
                cases.append({"template": name, "messages": messages, **options, **answer})
    file = {"templates": TEMPLATES, "tokens": TOKENS, "cases": cases}
    OUT.write_text(json.dumps(file, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
