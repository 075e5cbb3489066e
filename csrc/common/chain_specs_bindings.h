// The program of a chain as Python writes it, for the module of each engine: its types are that module's own.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/chain_specs.h"

namespace oes {

inline void bind_chain_specs(pybind11::module_& module) {
  pybind11::enum_<ConvKind>(module, "ConvKind", pybind11::module_local())
      .value("DIRECT", ConvKind::kDirect)
      .value("POINTWISE", ConvKind::kPointwise)
      .value("UPSAMPLE", ConvKind::kUpsample)
      .value("HEAD", ConvKind::kHead);
  pybind11::enum_<Padding>(module, "Padding", pybind11::module_local())
      .value("ZEROS", Padding::kZeros)
      .value("REFLECT", Padding::kReflect)
      .value("REPLICATE", Padding::kReplicate)
      .value("CIRCULAR", Padding::kCircular);
  pybind11::enum_<Act>(module, "Act", pybind11::module_local())
      .value("LEAKY_RELU", Act::kLeaky)
      .value("ELU", Act::kElu)
      .value("SILU", Act::kSilu);
  pybind11::enum_<OutputAct>(module, "OutputAct", pybind11::module_local())
      .value("LEAKY_RELU", OutputAct::kLeaky)
      .value("SIGMOID", OutputAct::kSigmoid);
  pybind11::class_<ConvSpec>(module, "ConvSpec", pybind11::module_local())
      .def(pybind11::init<>())
      .def_readwrite("kind", &ConvSpec::kind)
      .def_readwrite("padding", &ConvSpec::padding)
      .def_readwrite("border", &ConvSpec::border)
      .def_readwrite("box", &ConvSpec::box)
      .def_readwrite("stride", &ConvSpec::stride)
      .def_readwrite("kernel_rows", &ConvSpec::kernel_rows)
      .def_readwrite("kernel_columns", &ConvSpec::kernel_columns)
      .def_readwrite("outputs", &ConvSpec::outputs)
      .def_readwrite("taps", &ConvSpec::taps)
      .def_readwrite("weights", &ConvSpec::weights)
      .def_readwrite("first_weight", &ConvSpec::first_weight)
      .def_readwrite("dense", &ConvSpec::dense)
      .def_readwrite("scale", &ConvSpec::scale)
      .def_readwrite("bias", &ConvSpec::bias)
      .def_readwrite("constant_taps", &ConvSpec::constant_taps);
  pybind11::class_<NormSpec>(module, "NormSpec", pybind11::module_local())
      .def(pybind11::init<>())
      .def_readwrite("gamma", &NormSpec::gamma)
      .def_readwrite("beta", &NormSpec::beta)
      .def_readwrite("eps", &NormSpec::eps)
      .def_readwrite("momentum", &NormSpec::momentum)
      .def_readwrite("copies", &NormSpec::copies)
      .def_readwrite("tracks", &NormSpec::tracks)
      .def_readwrite("stats_index", &NormSpec::stats_index)
      .def_readwrite("tracked", &NormSpec::tracked)
      .def_readwrite("tracked_stats_index", &NormSpec::tracked_stats_index)
      .def_readwrite("act", &NormSpec::act)
      .def_readwrite("slope", &NormSpec::slope)
      .def_readwrite("constants", &NormSpec::constants);
}

} // namespace oes
