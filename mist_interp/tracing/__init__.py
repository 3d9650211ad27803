"""Reading and replacing activations of a policy while it acts.

Names are imported on first use: the tracing backend costs a second that a program without a policy does not need.

For users of TransformerLens, nnterp and nnsight, what is called what:

    HookedTransformer.from_pretrained        HookedVLA.from_pretrained; HookedVLA.tiny for tests
    verify_models, check_model_renaming      vla.check()
    hook names, hook_dict                    vla.describe("blocks.*.attn.*"), vla.sites(), vla.site(("q", -1))
    to_tokens, to_str_tokens                 vla.prepare(obs, instruction), vla.layout(inputs).labels()
    get_token_position                       layout.find("bowl"), .patch(camera, row, col), .region(camera, box or mask)
    cfg                                      vla.cfg
    run_with_cache(names_filter, pos_slice)  vla.run_with_cache(names, tokens, stop_at_layer, device, dtype, step, when)
    hook_q, hook_rot_q; hook_k, hook_rot_k   "q", "k": after the rotation; those before it have no name here
    hook_normalized (norm weight left out)   "ln1.normalized", "ln2.normalized", "ln_final.normalized": its weight
                                             included, as the next module reads it
    incl_bwd                                 vla.run_with_gradients(inputs, metric, names)
    run_with_hooks, hooks                    the same; vla.changes() says what they did
    list_hooks                               vla.edits()
    cache[...], items, batch slice, to       the same; also select, nbytes, save, load
    stack_activation                         cache.stack
    accumulated_resid, decompose_resid, stack_head_results, stack_neuron_results, get_full_resid_decomposition
                                             the same, of the cache; a row "rest" where asked for
    apply_ln_to_stack                        two functions, because they answer different questions:
                                             ResidualStack.renorm (lens) and .frozen_norm (attribution)
    project_on_vocab, top-k tokens           analysis.neurons: neuron_effects on the action, neuron_words
    loss_fn                                  a Metric of analysis.metrics, for patching and gradients
    head detectors, composition scores       analysis.attention.track, .segment_mass; analysis.weights.composition
    activation collectors                    mist_interp.collect; collect_rollouts while the policy acts
    skip_layers, steer                       vla.skip(layers), add(...), mist_interp.steering
    layers_output[5], attentions_output[5]   with vla.trace(inputs) as t: t.resid_post[5], t.attn_out[5], t.action
    .save() in a trace                       what is read by name is kept; x = t.save(x) for what is computed from it
    attention_probabilities                  "pattern"; "attn_scores" before the softmax
    ModuleAccessor                           vla.module("blocks.5.attn"), vla.sites_at("blocks.5.attn")
    scan                                     vla.shapes(inputs)
    HookedEncoder                            the towers' residual streams: "vision.dino.*", "vision.siglip.*"

What is refused, and why:

    add_hook, permanent hooks, reset_hooks   an edit lives as long as its scope, or a rollout may lose it unnoticed;
                                             for scopes without a `with` block, contextlib.ExitStack
    HookPoint.ctx                            a function can hold its own state
    remove_batch_dim                         every activation has a batch axis, so no code asks whether it is there
    toggle_autodiff, set_use_attn_result     nothing is switched globally: gradients and head results are asked for
    fold_ln, center_writing_weights          weights are never changed; attribution folds norms on copies
    generate, key-value cache                a policy answers a query at once; base OpenVLA's runs are `step=`
    names that match nothing                 an error with the nearest names, never an empty cache or a hook dropped
    q, k, v and pattern of the towers        their attention is one function over a fused matrix without names inside;
                                             `vla.trace` reaches its operations
    hook_result of neurons                   d_mlp times the stream; cache.stack_neuron_results for those that matter
    session, barrier, several invokes        batches are PolicyInputs.cat([...]); values pass from run to run in a cache
    remote execution                         out of scope
    Prompt, run_prompts                      a query with its names is PolicyInputs and its layout; batches are lists
    patchscope, patch_object_attn_lens       they ask a language model to speak; here the state would have to act. Keys
                                             and values of another scene: patch_from(cache, [("k", 3), ("v", 3)],
                                             tokens="agentview"), for all queries alike
    evaluations (IOI, induction)             LIBERO itself: mist_interp.evaluation; targets of probes:
                                             mist_interp.probing
"""

from __future__ import annotations

from mist_interp.core.lazy import lazy_exports

_HOMES = {
    "HookedVLA": "hooked",
    "ActivationCache": "cache",
    "NamedActivation": "activation",
    "Edit": "edits",
    "Intervention": "interventions",
    "save_edits": "interventions",
    "load_edits": "interventions",
    "Change": "changes",
    "add": "verbs",
    "scale": "verbs",
    "ablate": "verbs",
    "replace": "verbs",
    "patch_from": "verbs",
    "project_out": "verbs",
    "clamp_projection": "verbs",
    "skip": "verbs",
    "knockout": "verbs",
    "Facts": "facts",
    "Report": "checks",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
