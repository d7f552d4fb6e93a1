/* What the simulation does, read from small text files: the model file first, then the script that RKLLM_SIMULATION names. */
#ifndef SCRIPT_H
#define SCRIPT_H

#include <stdbool.h>

#define SCRIPT_BYTES_MAX 65536 /* A script is some lines; a model file may be gigabytes of which this much is looked at. */
#define VALUE_BYTES_MAX 8192   /* The longest answer that a script can hold. */

struct script {
    /* The model, by default one of the vendor's small ones. */
    double ttft_ms;        /* for a prompt of seqlen tokens; longer ones in proportion */
    double tokens_per_s;
    double memory_mb;
    long seqlen;
    long context_limit;    /* largest context that the model was made for */
    long npu_cores;
    long width;            /* of embeddings and hidden states */
    long vocabulary;
    char toolkit[32];      /* that of the runtime when a model does not say */
    char platform[32], dtype[32], driver[32];

    /* The answer. */
    char reply[16];        /* sentence | echo | text */
    char reply_text[VALUE_BYTES_MAX];
    long reply_tokens;     /* tokens until the model ends by itself */
    bool split_utf8;       /* tokens end within characters */
    bool null_text;        /* every second result has no text */
    long late_results;     /* results of the previous request that come in the next */
    bool reply_varies;     /* the answer has the number of its run in it */
    bool clear_ignored;    /* clearing the cache returns 0 and clears nothing */
    bool history_ignored;  /* every run begins with an empty cache */
    char numbers[16];      /* hidden states and logits: empty for those of the input, else zero | same | varying */

    /* Faults of init. */
    long init_ms;
    long init_code;        /* what rkllm_init returns */
    bool init_quiet_failure; /* an E line and 0, as the 1.1 line did; the first run ends the process */
    bool init_hang;
    bool init_crash;
    long init_exit;        /* exit status, -1 for none */
    long npu_memory;       /* errno of an exhausted NPU: 14 or 12 */
    bool npu_memory_crash; /* the process dies of it, as 1.3.0 does */

    /* Faults of a run. Tokens count from 1; 0 is in prefill, -1 never. */
    long run_code;
    long error_at;
    long error_code;       /* what rkllm_run returns then */
    long hang_at;
    bool hang_ignores_abort;
    bool tools_stay;       /* an empty text changes nothing of what rkllm_set_function_tools was told before */
    long crash_at;
    long exit_at, exit_code;
    long abort_ms;         /* how long an abort takes to be seen */
    bool abort_at_token;   /* an abort is seen at the end of a token, or of prefill, and not within it */
    double heat_factor;    /* the rate falls to this part of it ... */
    double heat_seconds;   /* ... within this time from the first run on */
    long matmul_failures;  /* E lines per run, while it goes on */
    long token_lines;      /* I lines per token */
    bool run_times;        /* an I line after each run: from when to when it had the NPU */

    /* Codes of the other calls. */
    long abort_code, destroy_code, lora_code, load_cache_code, release_cache_code, clear_code, size_code, template_code, tools_code;
};

enum model_kind { MODEL_UNREADABLE, MODEL_FOREIGN, MODEL_PLACEHOLDER, MODEL_TEST };

void script_defaults(struct script *script);
/* Read the head of a model file; *hash becomes its content's (head and size). */
enum model_kind script_read_model(struct script *script, const char *path, unsigned long long *hash);
/* Read what RKLLM_SIMULATION names, if anything; false if it cannot be read. */
bool script_read_environment(struct script *script);

#endif
