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

using Running = std::vector<std::optional<py::array>>;

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
    Chain<T>& self, const py::array& weights, const py::array& source, const py::array& out, const Running& running,
    const std::optional<py::array>& target, const std::optional<py::array>& weight) {
  if (!self.finished()) {
    throw py::value_error("chain: expected to be finished");
  }
  if (target.has_value() && self.ends_in_norm()) {
    throw py::value_error("target: expected none where the image comes from a norm");
  }
  const T* w = elements<T>("weights", weights, self.weights_size(), false);
  const T* x = elements<T>("source", source, self.source_size(), false);
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
    Chain<T>& self, const py::array& weights, const py::array& source, const std::optional<py::array>& grad,
    const py::array& grad_weights, const std::optional<py::array>& grad_source) {
  if (!self.finished()) {
    throw py::value_error("chain: expected to be finished");
  }
  const T* w = elements<T>("weights", weights, self.weights_size(), false);
  const T* x = elements<T>("source", source, self.source_size(), false);
  const T* g = elements<T>("grad", grad, self.output_size(), false);
  T* gw = elements<T>("grad_weights", grad_weights, self.weights_size(), true);
  T* gx = elements<T>("grad_source", grad_source, self.source_size(), true);
  if (g == nullptr && !self.has_loss()) {
    throw py::value_error("grad: expected one, since the last forward had no target");
  }
  const py::gil_scoped_release release;
  self.backward(w, x, g, gw, gx);
}

template <typename T>
void bind(py::module_& module, const char* name) {
  using C = Chain<T>;
  py::class_<C>(
      module, name,
      "Convolutions and batch norms run as one, for one thread at a time; see oes_fast/rewrite/run/chain_program.py.")
      .def(
          py::init<int64_t, int64_t, int64_t, bool, int64_t>(), py::arg("channels"), py::arg("rows"),
          py::arg("columns"), py::arg("constant_input"), py::arg("weights"))
      .def("add_conv", &C::add_conv, py::arg("spec"))
      .def("add_norm", &C::add_norm, py::arg("spec"))
      .def("finish", &C::finish, py::arg("act"), py::arg("slope"))
      .def_property_readonly("shape", &C::shape, "Channels, rows and columns of the result.")
      .def_property_readonly("source_size", &C::source_size, "Elements of the source.")
      .def_property_readonly(
          "source_row_major", &C::source_row_major,
          "Whether a constant source is taken as [rows, planes, columns], not [planes, rows, columns] with SLACK behind.")
      .def(
          "forward", &forward<T>, py::arg("weights"), py::arg("source"), py::arg("out"), py::arg("running"),
          py::arg("target"), py::arg("weight") = py::none(),
          "From weights and source writes the output, and [mean, variance] of every norm, None for none; returns the "
          "mean squared error to the target, each times its weight unless that is None, or 0 without a target.")
      .def(
          "backward", &backward<T>, py::arg("weights"), py::arg("source"), py::arg("grad"), py::arg("grad_weights"),
          py::arg("grad_source"),
          "Adds to grad_weights, writes grad_source unless it is None. grad None: of the error to the target.");
}

} // namespace

void bind_python(py::module_& module) {
  bind_chain_specs(module);
  module.attr("SLACK") = conv::winograd::kSlack;
  module.attr("MOST_HEAD_OUTPUTS") = norm::kMostHeadOutputs;
  bind<float>(module, "ChainFloat");
  bind<double>(module, "ChainDouble");
}

} // namespace oes::chain
