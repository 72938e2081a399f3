"""How DeepSeek's chat models write a conversation, for tokenizers without a template of their own.

Plain dialogue only: system, user and assistant. What they write equals the published templates;
tool calls, which only the published ones write, are refused here rather than left out.
"""

from moesaic.data.special import ASSISTANT, USER

_UNKNOWN_ROLE = (
    "{{ raise_exception('the role ' ~ message['role'] ~ ' is not system, user or assistant') }}"
)

DEEPSEEK_V2 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% else %}" + _UNKNOWN_ROLE + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""DeepSeekMoE-16B-chat, V2 and V2-Lite. Source: the model card of DeepSeek-V2-Lite-Chat."""

DEEPSEEK_V3 = (
    "{{ bos_token }}"
    "{{ messages | selectattr('role', 'equalto', 'system') "
    "| map(attribute='content') | join('\n\n') }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '" + USER + "' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '" + ASSISTANT + "' + message['content'] + eos_token }}"
    "{% elif message['role'] != 'system' %}" + _UNKNOWN_ROLE + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)
"""DeepSeek-V3: all system messages first. Source: its published ``tokenizer_config.json``."""

TEMPLATES = {"deepseek-v2": DEEPSEEK_V2, "deepseek-v3": DEEPSEEK_V3}
"""By the names that `DataConfig.chat_template` takes."""
