{{- define "shardledger.name" -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "shardledger.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "shardledger.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of objects, beyond those that selectors use and that therefore never change. */}}
{{- define "shardledger.allLabels" -}}
{{ include "shardledger.labels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "shardledger.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "shardledger.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The sections of a configuration as TOML: what the operator gave, and over it what the chart decides. toToml writes numbers of values as
     floats, so numbers are written here. Sections are one level deep. */}}
{{- define "shardledger.toml" -}}
{{- range $section, $settings := . }}
{{- if not (kindIs "map" $settings) }}
{{ $section }} = {{ int64 $settings }}
{{- end }}
{{- end }}
{{- range $section, $settings := . }}
{{- if kindIs "map" $settings }}
{{- range $name, $value := $settings }}
{{- if kindIs "string" $value }}
{{ $section }}.{{ $name }} = {{ $value | toJson }}
{{- else if kindIs "bool" $value }}
{{ $section }}.{{ $name }} = {{ $value }}
{{- else if kindIs "map" $value }}
{{ $section }}.{{ $name }} = { {{- range $i, $key := keys $value | sortAlpha }}{{ if $i }},{{ end }} {{ $key }} = {{ get $value $key | toJson }}{{ end }} }
{{- else }}
{{ $section }}.{{ $name }} = {{ int64 $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
