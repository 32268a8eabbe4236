// Where the ops are defined, file by file, on the class that Python calls.
#pragma once
#include "objects.h"

#include <nanobind/nanobind.h>

void def_model_ops(nanobind::class_<Runtime>& runtime);   // ops_model.cpp
void def_expert_ops(nanobind::class_<Runtime>& runtime);  // ops_experts.cpp
void def_logit_ops(nanobind::class_<Runtime>& runtime);   // ops_logits.cpp
void def_adapter_ops(nanobind::class_<Runtime>& runtime); // ops_adapters.cpp
void def_state_ops(nanobind::class_<Runtime>& runtime);   // ops_states.cpp
void def_stored(nanobind::module_& m, nanobind::class_<Weight>& weight, nanobind::class_<Bank>& bank);    // stored.cpp
