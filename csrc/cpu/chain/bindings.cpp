#include "cpu/chain/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "common/chain_specs_bindings.h"
#include "cpu/chain/chain.h"
#include "cpu/conv/winograd/tiles.h"

namespace py = pybind11;

namespace oes::chain {
namespace {

// The elements of an array, which is what a tensor on the CPU gives by numpy(); refused unless they are `numel`, or at
// least so many, of type T, one behind the other.
template <typename T>
T* elements(const std::string& name, const py::array& array, int64_t numel, bool written, bool at_least = false) {
  if (!py::isinstance<py::array_t<T>>(array)) {
    throw py::type_error(
        name + ": expected " + std::string(py::str(py::dtype::of<T>())) + ", got " +
        std::string(py::str(array.dtype())));
  }
  if ((array.flags() & py::array::c_style) == 0) {
    throw py::value_error(name + ": expected contiguous elements");
  }
  if (at_least ? array.size() < numel : array.size() != numel) {
    throw py::value_error(
        name + ": expected " + (at_least ? "at least " : "") + std::to_string(numel) + " elements, got " +
        std::to_string(array.size()));
  }
  if (written && !array.writeable()) {
    throw py::value_error(name + ": expected memory that may be written to");
  }
  return static_cast<T*>(const_cast<void*>(array.data())); // NOLINT: const where it is not written
}

template <typename T>
T* elements(const std::string& name, const std::optional<py::array>& array, int64_t numel, bool written) {
  return array.has_value() ? elements<T>(name, *array, numel, written) : nullptr;
}

using Arrays = std::vector<py::array>;
using Running = std::vector<std::optional<py::array>>;

// Those of the sources, one for each.
template <typename T>
std::vector<const T*> source_images(const Chain<T>& chain, const Arrays& sources) {
  if (static_cast<int64_t>(sources.size()) != chain.sources()) {
    throw py::value_error(
        "sources: expected " + std::to_string(chain.sources()) + " arrays, got " + std::to_string(sources.size()));
  }
  std::vector<const T*> images;
  for (size_t i = 0; i < sources.size(); ++i) {
    images.push_back(elements<T>("source", sources[i], chain.source_size(static_cast<int64_t>(i)), false));
  }
  return images;
}

template <typename T>
std::vector<T*> running_statistics(const Running& running, const Indices& sizes) {
  if (!running.empty() && running.size() != 2 * sizes.size()) {
    throw py::value_error(
        "running: expected none, or " + std::to_string(2 * sizes.size()) + " arrays, got " +
        std::to_string(running.size()));
  }
  std::vector<T*> pointers;
  for (size_t i = 0; i < running.size(); ++i) {
    const bool there = running[i].has_value();
    if (there != running[i ^ 1].has_value()) {
      throw py::value_error("running: expected mean and variance of a norm together");
    }
    pointers.push_back(there ? elements<T>("running", *running[i], sizes[i / 2], true, true) : nullptr);
  }
  return pointers;
}

template <typename T>
double forward(
    Chain<T>& self, const py::array& weights, const Arrays& sources, const py::array& out, const Running& running,
    const std::optional<py::array>& target, const std::optional<py::array>& weight) {
  if (!self.finished()) {
    throw py::value_error("chain: expected to be finished");
  }
  if (target.has_value() && self.ends_in_norm()) {
    throw py::value_error("target: expected none where the image comes from a norm");
  }
  const T* w = elements<T>("weights", weights, self.weights_size(), false);
  const std::vector<const T*> x = source_images(self, sources);
  T* y = elements<T>("out", out, self.output_size(), true);
  const std::vector<T*> statistics = running_statistics<T>(running, self.statistics_sizes());
  const T* t = elements<T>("target", target, self.output_size(), false);
  const T* of_errors = elements<T>("weight", weight, self.output_size(), false);
  if (of_errors != nullptr && t == nullptr) {
    throw py::value_error("weight: expected none without a target");
  }
  const py::gil_scoped_release release;
  return self.forward(w, x, y, statistics, t, of_errors);
}

template <typename T>
void backward(
    Chain<T>& self, const py::array& weights, const Arrays& sources, const std::optional<py::array>& grad,
    const py::array& grad_weights, const Running& grad_sources) {
  if (!self.finished()) {
    throw py::value_error("chain: expected to be finished");
  }
  const T* w = elements<T>("weights", weights, self.weights_size(), false);
  const std::vector<const T*> x = source_images(self, sources);
  const T* g = elements<T>("grad", grad, self.output_size(), false);
  T* gw = elements<T>("grad_weights", grad_weights, self.weights_size(), true);
  if (static_cast<int64_t>(grad_sources.size()) != self.sources()) {
    throw py::value_error(
        "grad_sources: expected " + std::to_string(self.sources()) + " arrays, got " +
        std::to_string(grad_sources.size()));
  }
  std::vector<T*> gx;
  for (int64_t i = 0; i < self.sources(); ++i) {
    gx.push_back(elements<T>("grad_source", grad_sources[i], self.source_size(i), true));
  }
  if (g == nullptr && !self.has_loss()) {
    throw py::value_error("grad: expected one, since the last forward had no target");
  }
  const py::gil_scoped_release release;
  self.backward(w, x, g, gw, gx);
}

// A question about one of the sources of a finished chain.
template <typename T, typename Answer, Answer (Chain<T>::*kAsk)(int64_t) const>
Answer checked(const Chain<T>& self, int64_t number) {
  if (!self.finished()) {
    throw py::value_error("chain: expected to be finished");
  }
  if (number < 0 || number >= self.sources()) {
    throw py::value_error("source: expected a number from 0 to " + std::to_string(self.sources() - 1));
  }
  return (self.*kAsk)(number);
}

template <typename T>
void bind(py::module_& module, const char* name) {
  using C = Chain<T>;
  py::class_<C>(
      module, name,
      "Convolutions, joins of their results and batch norms run as one, for one thread at a time; see oes_fast/rewrite/run/chain_program.py.")
      .def(
          py::init<int64_t, int64_t, int64_t, bool, int64_t>(), py::arg("channels"), py::arg("rows"),
          py::arg("columns"), py::arg("constant_input"), py::arg("weights"))
      .def(
          "add_source", &C::add_source, py::arg("channels"), py::arg("rows"), py::arg("columns"), py::arg("constant"),
          "Another source; its number.")
      .def(
          "add_conv", &C::add_conv, py::arg("spec"), py::arg("source") = C::kLast,
          "A convolution of a result, of the last one by default; the number of its own.")
      .def("add_join", &C::add_join, py::arg("spec"), "A sum, concatenation or map of results; the number of its own.")
      .def("add_norm", &C::add_norm, py::arg("spec"), py::arg("groups") = 0)
      .def("add_act", &C::add_act, py::arg("act"), py::arg("slope"))
      .def("add_planes", &C::add_planes, "Constant channels of the last result as planes behind the others.")
      .def("finish", &C::finish, py::arg("act"), py::arg("slope"))
      .def_property_readonly("shape", &C::shape, "Channels, rows and columns of the result.")
      .def_property_readonly("memory", &C::memory, "Bytes of the buffers that hold images.")
      .def("source_size", &checked<T, int64_t, &C::source_size>, py::arg("number"), "Elements of a source.")
      .def(
          "source_row_major", &checked<T, bool, &C::source_row_major>, py::arg("number"),
          "Whether a constant source is taken as [rows, planes, columns], not [planes, rows, columns] with SLACK behind.")
      .def(
          "forward", &forward<T>, py::arg("weights"), py::arg("sources"), py::arg("out"), py::arg("running"),
          py::arg("target"), py::arg("weight") = py::none(),
          "From weights and sources writes the output, and [mean, variance] of every norm, None for none; returns the "
          "mean squared error to the target, each times its weight unless that is None, or 0 without a target.")
      .def(
          "backward", &backward<T>, py::arg("weights"), py::arg("sources"), py::arg("grad"), py::arg("grad_weights"),
          py::arg("grad_sources"),
          "Adds to grad_weights, writes those of grad_sources that are not None. grad None: of the error to the "
          "target.");
}

void bind_join(py::module_& module) {
  py::enum_<JoinKind>(module, "JoinKind", py::module_local())
      .value("SUM", JoinKind::kSum)
      .value("RESAMPLE", JoinKind::kResample)
      .value("AVERAGE_POOL", JoinKind::kAveragePool)
      .value("MAX_POOL", JoinKind::kMaxPool)
      .value("CROP", JoinKind::kCrop)
      .value("PIXEL_SHUFFLE", JoinKind::kPixelShuffle)
      .value("PRELU", JoinKind::kPrelu);
  py::class_<JoinSpec>(module, "JoinSpec", py::module_local())
      .def(py::init<>())
      .def_readwrite("kind", &JoinSpec::kind)
      .def_readwrite("inputs", &JoinSpec::inputs)
      .def_readwrite("outputs", &JoinSpec::outputs)
      .def_readwrite("rows", &JoinSpec::rows)
      .def_readwrite("columns", &JoinSpec::columns)
      .def_readwrite("terms", &JoinSpec::terms)
      .def_readwrite("bias", &JoinSpec::bias)
      .def_readwrite("constant_terms", &JoinSpec::constant_terms)
      .def_readwrite("scale", &JoinSpec::scale)
      .def_readwrite("row_index", &JoinSpec::row_index)
      .def_readwrite("column_index", &JoinSpec::column_index)
      .def_readwrite("row_weights", &JoinSpec::row_weights)
      .def_readwrite("column_weights", &JoinSpec::column_weights)
      .def_readwrite("window_rows", &JoinSpec::window_rows)
      .def_readwrite("window_columns", &JoinSpec::window_columns)
      .def_readwrite("stride_rows", &JoinSpec::stride_rows)
      .def_readwrite("stride_columns", &JoinSpec::stride_columns)
      .def_readwrite("top", &JoinSpec::top)
      .def_readwrite("left", &JoinSpec::left)
      .def_readwrite("factor", &JoinSpec::factor)
      .def_readwrite("slopes", &JoinSpec::slopes);
}

} // namespace

void bind_python(py::module_& module) {
  bind_chain_specs(module);
  bind_join(module);
  module.attr("SLACK") = conv::winograd::kSlack;
  module.attr("MOST_HEAD_OUTPUTS") = norm::kMostHeadOutputs;
  bind<float>(module, "ChainFloat");
  bind<double>(module, "ChainDouble");
  bind_source_layout(module);
}

} // namespace oes::chain
